"""bfloat16 numbers, which NumPy has no type for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    # Of NaN the sum would overflow, or leave no bit that says so.
    kept = np.where(np.isnan(array), bits | np.uint32(0x400000), rounded)
    found: npt.NDArray[np.uint16] = (kept >> np.uint32(16)).astype(np.uint16)
    return found
