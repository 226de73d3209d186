"""Logits of ids that are no tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.relax.frontend.nn import Tensor


def make_logit_mask(vocab_size: int, unused: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return what makes the logits of `unused` ids minus infinity, whatever lies in their rows."""
    if len(unused) == 0:
        return lambda logits: logits
    bias = np.zeros(vocab_size, np.float32)
    bias[list(unused)] = -np.inf
    return lambda logits: logits + Tensor(_expr=relax.const(bias, "float32"))
