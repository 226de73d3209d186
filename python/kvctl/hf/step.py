"""The step that a model's forward is in, as its attention and its layers see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
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
        (1, n, hidden_size) replaces the rows that enter the first of `layers`, if it is given.
    keeps
        Whether `positions`, and K and V of each layer, (1, kv_heads, n, head_dim), are kept.
    hidden
        The outputs of layers, (1, n, hidden_size), for each layer that somebody asks for.
    asked, wants_final
        The layers that the caller asks for, or whether for what the output layer reads.
    """

    cache: PagedKVCache
    layers: range | None = None
    entering: torch.Tensor | None = None
    keeps: bool = False
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    positions: npt.NDArray[np.int64] | None = None
    hidden: dict[int, torch.Tensor | None] = field(default_factory=dict)
    asked: tuple[int, ...] = ()
    wants_final: bool = False
    final: torch.Tensor | None = None

    def states(self) -> torch.Tensor | None:
        """Return the hidden states that the caller asked for, (n, layers, hidden_size)."""
        if self.wants_final:
            assert self.final is not None
            return self.final[0][:, None]
        if not self.asked:
            return None
        return torch.stack([self.hidden[layer][0] for layer in self.asked], 1)  # type: ignore[index]


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
