"""Python values as libkvctl takes them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tvm_ffi

from . import functions as ffi


def to_tensor(array: Any, name: str = "the tensor") -> tvm_ffi.Tensor:
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
        # ml_dtypes' bfloat16, which NumPy's DLPack refuses. Reading the name is slow, so last.
        if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous")
            halves = tvm_ffi.from_dlpack(array.view(np.uint16))
            return ffi.runtime.TVMTensorCreateView(
                halves, tvm_ffi.Shape(halves.shape), tvm_ffi.dtype("bfloat16"), 0
            )
    try:
        return tvm_ffi.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        why, dtype = str(error).partition("\n")[0], getattr(array, "dtype", "?")
        raise TypeError(f"{name} cannot be read through DLPack: {why} (dtype {dtype})") from error


def to_input(array: Any, name: str) -> tvm_ffi.Tensor:
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


def to_path(path: str | os.PathLike[str]) -> str:
    """Return a path as text that crosses the FFI.

    Raises
    ------
    ValueError
        If it is no text in UTF-8, as names of files may be.
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise ValueError(f"{shown} is no path in UTF-8: give the directory another name") from None
    return text
