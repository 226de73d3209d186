"""How values of Python cross to libkvctl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from ..mask import Mask
from ..tree import TokenTree

if TYPE_CHECKING:
    from typing import TypeAlias

    MaskLike: TypeAlias = Mask | TokenTree


_view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")


def to_tensor(array: Any, name: str = "the tensor") -> Any:
    """Return anything with DLPack as an FFI tensor that shares its memory.

    Raises
    ------
    TypeError
        If it is no tensor. The message calls it by `name`.
    ValueError
        If it is a read-only array.
    """
    if isinstance(array, tvm_ffi.Tensor):
        return array
    if not hasattr(array, "__dlpack__"):
        raise TypeError(
            f"{name} must be a tensor (NumPy, PyTorch, TVM, anything with DLPack), "
            f"got {type(array).__name__}"
        )
    if isinstance(array, np.ndarray):
        if not array.flags.writeable:
            raise ValueError(f"{name} must be writeable")
        # Of ml_dtypes, which NumPy's DLPack does not know. A name takes longer than all the rest.
        if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous")
            halves = tvm_ffi.from_dlpack(array.view(np.uint16))
            return _view(halves, halves.shape, tvm_ffi.dtype("bfloat16"), 0)
    try:
        return tvm_ffi.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        why, dtype = str(error).partition("\n")[0], getattr(array, "dtype", "?")
        raise TypeError(f"{name} cannot be read through DLPack: {why} (dtype {dtype})") from error


def to_input(array: Any, name: str) -> Any:
    """Return anything with DLPack as an FFI tensor to read from: read-only arrays are copied.

    Raises
    ------
    TypeError
        If it is no tensor. The message calls it by `name`.
    """
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()
    return to_tensor(array, name)


def to_numpy(tensor: Any) -> Any:
    """Return a tensor on the host as an array that shares its memory; None stays None."""
    return None if tensor is None else np.from_dlpack(tensor)


def encode_pending(pending: bool | None) -> int:
    """Return whether new tokens are pending as FFI functions take it: -1 where the mask says so.

    Raises
    ------
    TypeError
        If it is something else than True, False and None.
    """
    if pending is not None and not isinstance(pending, bool | np.bool_):
        raise TypeError(f"pending must be True, False or None, got {pending!r}")
    return -1 if pending is None else int(pending)


def encode_masks(mask: MaskLike | Sequence[MaskLike | None] | None) -> list[Any] | None:
    """Return one mask, or one per sequence, as FFI functions take them.

    Raises
    ------
    TypeError
        If something is no mask.
    """
    if mask is None:
        return None
    many = list(mask) if isinstance(mask, (list, tuple)) else [mask]
    for one in many:
        if one is not None and not isinstance(one, Mask | TokenTree):
            raise TypeError(
                f"a mask must be a kvctl.Mask or a kvctl.TokenTree, got {type(one).__name__}; "
                "Mask.full and Mask.dense take boolean arrays, Mask.tree takes parents"
            )
    return [one.mask() if isinstance(one, TokenTree) else one for one in many]
