"""Rows of arrays that may lie on the host or on a device: some of them, and several joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def some_rows(array: Any, begin: int, end: int) -> Any:
    """Return rows begin ... end of a matrix, without a copy."""
    if hasattr(array, "__getitem__"):
        return array[begin:end]
    if _on_host(array):
        return np.from_dlpack(array)[begin:end]
    return _view(array, begin, end)


def take_rows(array: Any, rows: Sequence[int]) -> Any:
    """Return some rows of an array; a copy, on the array's device where it can index itself."""
    if hasattr(array, "__getitem__"):
        return array[list(rows)]
    return _to_host(array)[list(rows)]


def joinable(rows: Any) -> tuple[Any, ...] | None:
    """Return what must be equal for rows to be joined; None if they cannot be.

    `rows` is a matrix, or a pair of two.
    """
    parts = rows if isinstance(rows, tuple) else (rows,)
    if not all(isinstance(part, np.ndarray) or _is_torch(part) for part in parts):
        return None
    return tuple(
        (type(part), str(part.dtype), tuple(part.shape[1:]), str(getattr(part, "device", "")))
        for part in parts
    )


def join_rows(many: Sequence[Any]) -> Any:
    """Return the rows of several matrices, or pairs of them, one after another."""
    if len(many) == 1:
        return many[0]
    if isinstance(many[0], tuple):
        return tuple(join_rows(part) for part in zip(*many, strict=True))
    if isinstance(many[0], np.ndarray):
        return np.concatenate(many)
    import torch

    return torch.cat(list(many))


def num_rows(rows: Any) -> int:
    """Return how many rows a matrix has, or each of a pair."""
    return int((rows[0] if isinstance(rows, tuple) else rows).shape[0])


def _on_host(array: Any) -> bool:
    return bool(array.__dlpack_device__()[0] == 1)


def _to_host(array: Any) -> Any:
    if _on_host(array):
        return np.from_dlpack(array)
    import tvm

    return tvm.runtime.from_dlpack(array).numpy()


def _is_torch(array: Any) -> bool:
    return type(array).__module__ == "torch" and hasattr(array, "contiguous")


def _view(array: Any, begin: int, end: int) -> Any:
    """Return rows of a tensor on a device as a view of its memory."""
    import tvm

    whole = tvm.runtime.from_dlpack(array)
    shape = (end - begin, *(int(extent) for extent in whole.shape[1:]))
    row = np.dtype(str(whole.dtype)).itemsize * int(np.prod(shape[1:]))
    return whole._create_view(shape, relative_byte_offset=begin * row)
