"""What tells a model from another one that has taken its name."""

from __future__ import annotations

from typing import Any


def identity_of(model: Any) -> str | None:
    """Return the ``identity`` of a runner, a head or a drafter.

    Returns
    -------
    str or None
        None where it has none, or the file that it names is gone.
    """
    try:
        identity: str | None = getattr(model, "identity", None)
    except OSError:
        return None
    return identity
