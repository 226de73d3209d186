"""The drafter "head" of command lines: a compiled head drafts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..draft import Drafter
    from ..engine.protocol import Runner


def head_drafter(
    runner: Runner,
    directory: str,
    *,
    length: int | None = None,
    max_length: int = 6,
    branching: int | None = None,
    beam: int | None = 4,
    nodes: int | None = 16,
    how: str = "deterministic",
) -> Drafter:
    """Load a head that `kvctl heads compile` made, and make its drafter.

    Of Medusa's heads only `nodes` counts. Drafts that are drawn at random have no beam, and all
    their nodes are verified. `branching` is 4 by default, and 1 where drafts are drawn.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`kvctl.heads.load` and :class:`kvctl.draft.HeadDrafter`, and if the head does not
        fit the model.
    """
    head = _loaded(directory)
    head.check_target(runner)
    if not hasattr(head, "cache"):
        medusa: Drafter = head.drafter(nodes=nodes or 16)
        return medusa
    options: dict[str, Any] = {"length": length, "max_length": max_length, "how": how}
    if how == "deterministic":
        options |= {"beam": beam, "nodes": nodes, "branching": branching or 4}
    else:
        options["branching"] = branching or 1
    drafter: Drafter = head.drafter(**options)
    return drafter


@cache
def _loaded(directory: str) -> Any:
    """Load a head once: the drafters of a command take turns on it."""
    from ..heads import load

    return load(directory)
