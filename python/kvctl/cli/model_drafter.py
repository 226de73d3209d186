"""The drafter "model" of command lines: another model directory drafts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..draft import DRAFTERS, ModelDrafter, register_drafter
from ..open_runner import open_runner
from .head_drafter import head_drafter

if TYPE_CHECKING:
    from ..draft import Drafter
    from ..engine.protocol import Runner


def model_drafter(
    directory: str,
    *,
    length: int | None = None,
    max_length: int = 8,
    branching: int = 1,
    beam: int | None = None,
    how: str = "deterministic",
    max_sequences: int = 4,
) -> Drafter:
    """Load a draft model, named as a command names its target, and make its drafter.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_runner` and :class:`kvctl.draft.ModelDrafter`.
    """
    return ModelDrafter(
        _opened(directory, max_sequences),
        length=length,
        max_length=max_length,
        branching=branching,
        beam=beam,
        how=how,
    )


@cache
def _opened(directory: str, max_sequences: int) -> Runner:
    """Load a draft model once: the drafters of a command take turns on it."""
    return open_runner(directory, talks=False, max_sequences=max_sequences)


def register_drafters() -> None:
    """Let this process know the drafters that read files by their names."""
    for name, make in (("model", model_drafter), ("head", head_drafter)):
        if name not in DRAFTERS:
            register_drafter(name, make)
