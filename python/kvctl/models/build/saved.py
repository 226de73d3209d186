"""Parameters as they are saved: float32, float16, bfloat16, or blocks of 8 or 4 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from ..._ffi import functions as ffi
from ..graph.layers import BLOCK_BYTES, PACK_BFLOAT16, ParamSpec

# What would be rounded to infinity.
_BFLOAT16_LIMIT = 255.5 * 2.0**120
_BLOCK_LIMITS = {8: 127 * 65504.0, 4: 8 * 65504.0}  # by bits: scales are float16
_CHECKED_AT_ONCE = 1 << 17
"""Numbers that the processor's nearest cache holds."""


def converted_parameter(
    array: npt.NDArray[np.float32],
    param: ParamSpec,
    source: str | Path | None,
    name: str | None = None,
) -> npt.NDArray[Any]:
    """Return a parameter as it is saved; its numbers are finite and in the range of its type.

    Messages name `source`, where it comes from, and the weight, where that has a `name` of its own.
    """
    bits = _bits(param)
    limit = _BLOCK_LIMITS[bits] if bits else _BFLOAT16_LIMIT if is_halved(param) else np.inf
    with np.errstate(over="ignore"):
        converted = array if bits else array.astype(param.dtype, copy=False)
    if _are_below(converted.reshape(-1), limit):
        return _quantize(converted, bits) if bits else converted
    finite = np.isfinite(array).all()
    problem = "is beyond the range of its type" if finite else "is not finite (NaN or infinity)"
    where = "" if source is None else f"{source}: "
    raise ValueError(f"{where}weight '{name or param.name}' {problem}")


def _are_below(values: npt.NDArray[Any], limit: float) -> bool:
    """Whether all numbers are finite and of a magnitude below a limit; values (n,)."""
    for begin in range(0, len(values), _CHECKED_AT_ONCE):
        part = values[begin : begin + _CHECKED_AT_ONCE]
        if not (-limit < part.min() and part.max() < limit):  # NaN is the extreme of where it is
            return False
    return True


def is_halved(param: ParamSpec) -> bool:
    """Return whether a float32 parameter is saved as bfloat16."""
    return param.packed == PACK_BFLOAT16


def _bits(param: ParamSpec) -> int:
    """Return how many bits the weights of a quantized parameter have, and 0 for others."""
    if param.dtype != "uint8":
        return 0
    return 8 if param.shape[-1] == BLOCK_BYTES["int8"] else 4


def _quantize(array: npt.NDArray[np.float32], bits: int) -> npt.NDArray[Any]:
    """Return the ``(rows, columns / 32, bytes)`` blocks of a weight: GGUF's Q8_0 or Q4_0."""
    weight = tvm_ffi.from_dlpack(np.ascontiguousarray(array))
    return np.from_dlpack(ffi.model.quantize(weight, bits))


def saved_size(param: ParamSpec) -> int:
    """Return the number of elements that are saved, which are bytes for blocks."""
    return math.prod(param.shape)


def saved_bytes(param: ParamSpec) -> int:
    """Return the bytes that are saved."""
    size = saved_size(param) * np.dtype(param.dtype).itemsize
    return size // 2 if is_halved(param) else size
