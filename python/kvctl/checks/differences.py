"""How far logits are from others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def difference(logits: Float32, others: Float32) -> Float32:
    """Return the distance of each logit from another one; 0 where both are the same.

    Tokens that a model masks have minus infinity in both, whose difference would be NaN.
    """
    same = logits == others
    zeros = np.zeros_like(logits)
    found: Float32 = np.abs(np.subtract(logits, others, out=zeros, where=~same))
    return found
