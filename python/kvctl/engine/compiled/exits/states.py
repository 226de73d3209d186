"""Which hidden states a forward is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...._ffi.integers import to_int64

_LAST = -1
"""What libkvctl calls the rows that the output layer reads."""


def asked_layers(hidden: bool | Sequence[int]) -> tuple[int, ...]:
    """Return the layers that ``hidden=`` asks for, as libkvctl counts them.

    Raises
    ------
    ValueError
        If it is no layer.
    """
    if isinstance(hidden, bool):
        return (_LAST,) if hidden else ()
    layers: list[int] = to_int64(hidden, "hidden").tolist()
    if not layers or min(layers) < 0:
        raise ValueError(f"hidden must be True or layers counted from 0, got {list(hidden)}")
    return tuple(layers)


def layers_to_run(layers: range | None, count: int | None) -> int:
    """Return how many layers ``layers=`` asks for, 0 being all.

    Parameters
    ----------
    layers : range, optional
        What was asked for.
    count : int, optional
        How many layers the model has, where it says so.

    Raises
    ------
    ValueError
        If it is no range from 0.
    """
    if layers is None:
        return 0
    if not isinstance(layers, range) or layers.start != 0 or layers.step != 1 or not layers:
        raise ValueError(f"layers must be range(0, n) with n from 1, got {layers!r}")
    return 0 if layers.stop == count else layers.stop


def logits_and_hidden(states: Sequence[Any], hidden: bool | Sequence[int]) -> Any:
    """Return logits, or a pair of them and the hidden states where these were asked for."""
    return states[0] if hidden is False else (states[0], states[1])
