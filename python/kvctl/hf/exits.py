"""Rows that ran the first layers of a model only, kept so that the other layers can follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..mask import Mask
from ..torch.batches import Int64Array, Request
from ..tree import TokenTree

if TYPE_CHECKING:
    from ..cache.step_arguments import MaskLike


@dataclass
class PartialRows:
    """The pending rows of one sequence that ran layers ``range(0, until)``.

    Attributes
    ----------
    until
        How many layers they ran.
    request
        What forwards them once more; its mask is None where their masks together are no tree.
    positions
        (n,) their positions.
    keys, values
        For each of the layers (kv_heads, n, head_dim).
    entering
        (n, hidden_size) what enters the next layer.
    """

    until: int
    request: Request
    positions: Int64Array
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    entering: torch.Tensor

    def __len__(self) -> int:
        return len(self.request)

    def first(self, count: int) -> PartialRows:
        """Return the first `count` rows, as they are after a ``popn``."""
        if count == len(self):
            return self
        parents = _parents(self.request.mask, len(self), 0)
        if parents is None:
            raise ValueError(
                f"sequence {self.request.seq_id}: pending rows under a mask that is no tree were "
                "popped, so that the others cannot be completed; abort them"
            )
        request = self.request.part(0, count)
        request.mask = Mask.tree(parents[:count])
        return PartialRows(
            self.until,
            request,
            self.positions[:count],
            [key[:, :count] for key in self.keys],
            [value[:, :count] for value in self.values],
            self.entering[:count],
        )

    def tree_with(self, request: Request) -> list[int]:
        """Return the parents of these rows and of those that a request puts behind them.

        Raises
        ------
        ValueError
            If together they are no tree.
        """
        one = _parents(self.request.mask, len(self), 0)
        two = _parents(request.mask, len(request), len(self))
        is_chain = one is not None and one == list(range(-1, len(self) - 1))
        if one is None or two is None or (request.mask is None and not is_chain):
            raise ValueError(
                f"sequence {request.seq_id} has pending rows that ran {self.until} layers, and "
                "only a tree of such rows grows; complete or abort them first"
            )
        return [*one, *two]

    def grown(self, more: PartialRows) -> PartialRows:
        """Return these rows and others that ran the same layers behind them."""
        seq_id, parents = self.request.seq_id, self.tree_with(more.request)
        tokens = np.concatenate([self.request.tokens, more.request.tokens])
        positions = np.concatenate([self.positions, more.positions])
        explicit = self.request.positions is not None or more.request.positions is not None
        return PartialRows(
            self.until,
            Request(seq_id, tokens, Mask.tree(parents), positions if explicit else None),
            positions,
            [torch.cat(pair, 1) for pair in zip(self.keys, more.keys, strict=True)],
            [torch.cat(pair, 1) for pair in zip(self.values, more.values, strict=True)],
            torch.cat([self.entering, more.entering]),
        )


def _parents(mask: MaskLike | None, count: int, before: int) -> list[int] | None:
    """Return the parents of `count` new rows behind `before` pending ones; None if no tree."""
    if mask is None:
        return list(range(before - 1, before + count - 1))
    if isinstance(mask, TokenTree):
        mask = mask.mask()
    parents = mask.tree_parents
    if parents is None or mask != Mask.tree(parents):
        return None
    known: list[int] = parents.tolist()
    return known[-count:]
