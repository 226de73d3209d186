"""Convert integers from lists, arrays or tensors, and refuse what would be rounded or cut off."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tvm_ffi

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

_PLAIN = {int}


def to_int64(values: Any, name: str, *, ndim: int = 1, ordered: bool = True) -> Int64Array:
    """Return integers as an array; NumPy would silently convert 1.5 and True to 1.

    Raises
    ------
    TypeError
        If they are not integers, or a set and `ordered`. The message calls them by `name`.
    ValueError
        If there is another number of dimensions, or one of them does not fit 64 bits.
    """
    if ndim == 1 and _is_plain(values):  # most calls take this path, in a third of the time
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise ValueError(f"{name} must fit 64 bits, got {max(values, key=abs)}") from None
    if ordered and isinstance(values, set | frozenset):
        raise TypeError(f"{name} must be integers in an order, not a {type(values).__name__}")
    array = _array(values, name)
    if array.ndim != ndim:
        wanted = "one dimension" if ndim == 1 else f"{ndim} dimensions"
        raise ValueError(f"{name} must have {wanted}, got shape {array.shape}")
    if array.size == 0:
        return np.empty(array.shape, np.int64)
    if array.dtype == object and all(type(value) is int for value in array.flat):
        try:
            return array.astype(np.int64)
        except OverflowError:
            raise ValueError(f"{name} must fit 64 bits, got {_farthest(array)}") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit 64 bits, got {array.max()}")
    return array.astype(np.int64, copy=False)


def to_int32(values: Any, name: str, *, ndim: int = 1, ordered: bool = True) -> Int32Array:
    """Return integers as a contiguous array of 32 bits; raises as :func:`to_int64` does."""
    array = to_int64(values, name, ndim=ndim, ordered=ordered)
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(f"{name} must fit 32 bits, got {_farthest(array)}")
    return np.ascontiguousarray(array, dtype=np.int32)


def one_int32(value: Any, name: str) -> int:
    """Return an integer of 32 bits; raises as :func:`to_int64` does."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} must fit 32 bits, got {number}")
    return number


def to_shape(values: Iterable[int], name: str, *, ordered: bool = True) -> tvm_ffi.Shape:
    """Return integers as an FFI shape, which is how lists of them cross; raises as `to_int64`."""
    plain = _is_plain(values)
    try:
        return tvm_ffi.Shape(
            tuple(values if plain else to_int64(values, name, ordered=ordered).tolist())
        )
    except ValueError:
        if not plain:
            raise
        raise ValueError(f"{name} must fit 64 bits") from None


def _is_plain(values: Any) -> bool:
    return isinstance(values, list | tuple) and set(map(type, values)) <= _PLAIN


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    if hasattr(values, "__array__"):
        return np.asarray(values)
    if hasattr(values, "__dlpack__"):
        return np.from_dlpack(cast(Any, values))
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    return np.asarray(values if isinstance(values, list | tuple) else list(values))


def _farthest(array: npt.NDArray[Any]) -> Any:
    return max(array.flat, key=abs)
