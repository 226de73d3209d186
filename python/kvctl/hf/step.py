"""The step that a model's forward is in, as its attention and its layers see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache import PagedKVCache


@dataclass
class Step:
    """One forward of a model under a cache, in one thread.

    Attributes
    ----------
    cache
        What attention appends to.
    layers
        The layers that run; None for all of them.
    entering
        Replaces the rows that enter the first of `layers`; None where they are the layers' own.
    keep
        Called with the layer, K and V of each attention; None where nobody asks.
    hidden
        The layers whose outputs are asked for, and those outputs as they come.
    final
        What the output layer reads, if it is asked for.
    """

    cache: PagedKVCache
    layers: range | None = None
    entering: torch.Tensor | None = None
    keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
    hidden: dict[int, torch.Tensor | None] = field(default_factory=dict)
    wants_final: bool = False
    final: torch.Tensor | None = None


# Of the thread, or of the task in asyncio, that runs the forward.
_current: ContextVar[Any] = ContextVar("kvctl.hf.step", default=None)


def current() -> Any:
    """Return the Step, or the probe, that this thread's forward is in; None outside."""
    return _current.get()


@contextmanager
def entered(step: Any) -> Iterator[None]:
    """Make a step, or a probe, the current one."""
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)
