"""How values of Python cross to libkvctl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

if TYPE_CHECKING:
    from typing import TypeAlias

    from .mask import Mask
    from .tree import TokenTree

    MaskLike: TypeAlias = Mask | TokenTree


def to_shape(values: Iterable[int]) -> Any:
    """Return integers as an FFI shape, which is how lists of them cross the boundary."""
    return tvm_ffi.Shape(tuple(int(value) for value in values))


def to_tensor(array: Any) -> Any:
    """Return anything with DLPack as an FFI tensor that shares its memory."""
    return array if isinstance(array, tvm_ffi.Tensor) else tvm_ffi.from_dlpack(array)


def to_numpy(tensor: Any) -> Any:
    """Return a tensor on the host as an array that shares its memory; None stays None."""
    return None if tensor is None else np.from_dlpack(tensor)


def encode_masks(mask: MaskLike | Sequence[MaskLike | None] | None) -> list[Any] | None:
    """Return one mask, or one per sequence, as FFI functions take them."""
    if mask is None:
        return None
    many = list(mask) if isinstance(mask, (list, tuple)) else [mask]
    return [one.mask() if hasattr(one, "mask") else one for one in many]
