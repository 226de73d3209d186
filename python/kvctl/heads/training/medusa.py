"""Medusa's heads in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, silu

from .shared import Shared, cross_entropy, rms_norm

_DISCOUNT = 0.8  # of the loss, for each head


class Medusa(nn.Module):
    """Heads of one residual block each; their output layers are the target's, and not trained.

    The blocks begin at zero: at first every head says what the target says.

    Parameters
    ----------
    shared
        Of the target.
    steps
        How many heads there are.
    """

    def __init__(self, shared: Shared, *, steps: int = 4) -> None:
        super().__init__()
        width = shared.config.hidden_size
        self.shared, self.steps = shared, steps
        self.by_name = {
            f"{head}.0.linear.{name}": nn.Parameter(torch.zeros(shape))
            for head in range(steps)
            for name, shape in (("weight", (width, width)), ("bias", (width,)))
        }
        self.weights = nn.ParameterList(self.by_name.values())

    def loss(self, batch: Any) -> tuple[Any, Any]:
        """Return the loss of a batch, and (steps, 2): drafts that were right, and all of them."""
        tokens, hidden = batch.tokens, batch.hidden
        steps, size = self.steps, tokens.shape[1] - self.steps - 1
        # Row i leads to token i + 1; head k is about the one k + 1 behind that.
        known = batch.answers & (self.shared.own_ids[tokens] >= 0)
        trained = torch.stack([known[:, k + 2 : k + 2 + size] for k in range(steps)]).all(0)
        rows = rms_norm(hidden[:, :size, -1][trained], self.shared.norm, self.shared.config)
        total, counts = 0.0, []
        reached = torch.ones(len(rows), dtype=torch.bool)
        for head in range(steps):
            teacher = self.shared.probabilities(hidden[:, head + 1 : head + 1 + size, -1][trained])
            w, b = (self.by_name[f"{head}.0.linear.{name}"] for name in ("weight", "bias"))
            one, said = cross_entropy(
                rows + silu(linear(rows, w, b)).float(), self.shared.output, teacher
            )
            total = total + _DISCOUNT**head * one
            right = (said == teacher.argmax(-1)) & reached
            counts.append(torch.stack([right.sum(), reached.sum()]))
            reached = right
        return total, torch.stack(counts)
