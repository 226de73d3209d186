"""Logits of ids that are no tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend.nn import Tensor

LOGIT_MASK = "logit_mask"
"""The parameter that is added to the logits of a worker of several."""


def logit_mask_values(vocab_size: int, unused: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return what is added to all logits: minus infinity for ids that are no tokens."""
    mask = np.zeros(vocab_size, np.float32)
    mask[list(unused)] = -np.inf
    return mask


def make_logit_mask(vocab_size: int, unused: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return what makes the logits of `unused` ids minus infinity, whatever lies in their rows."""
    if len(unused) == 0:
        return lambda logits: logits
    bias = logit_mask_values(vocab_size, unused)
    return lambda logits: logits + Tensor(_expr=relax.const(bias, "float32"))
