"""Trees, names and random streams of a batch as libkvctl takes them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from .._ffi.convert import to_input
from .._ffi.integers import to_int64
from ..tree import TokenTree

RULES = tuple(map(str, ffi.verify.get_rules()))
"""The names of the acceptance rules; libkvctl takes the index of one."""
DRAWN = tuple(map(str, ffi.verify.get_drawn()))
"""The names of the ways in which tokens are drawn; libkvctl takes the index of one."""

_PLAIN = frozenset(np.dtype(name) for name in ("f2", "f4", "f8", "i4"))
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Drawn: TypeAlias = str | Sequence[str | Sequence[str]]


def tensor(array: Any, name: str) -> Any:
    """Return something libkvctl can read: contiguous DLPack objects in place, all else copied."""
    if type(array) is np.ndarray and array.dtype in _PLAIN and array.flags.carray:
        return array  # most calls: the FFI takes it as it is
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack__"):
        array = np.ascontiguousarray(array)
        if array.dtype.kind in "OUSc":
            raise TypeError(f"{name} must be real numbers, got {array.dtype}")
    elif hasattr(array, "is_contiguous") and callable(getattr(array, "contiguous", None)):
        array = array.contiguous()  # PyTorch: a slice of columns is copied, on its own device
    return to_input(array, name)


def matrix_shape(array: Any, name: str) -> tuple[int, int]:
    """Return the rows and columns of what `tensor` returned.

    Raises
    ------
    ValueError
        If it is no matrix.
    """
    shape = tuple(int(extent) for extent in array.shape)
    if len(shape) != 2:
        raise ValueError(f"{name} must have shape (rows, vocabulary), got {shape}")
    return shape[0], shape[1]


def signed(value: int) -> int:
    """Return an integer of 64 bits, signed or not, as the FFI passes it.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it needs more bits: without them, two names would be one.
    """
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"seeds and request ids must be integers, got {value!r}") from None
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seeds and request ids must fit 64 bits, got {number}")
    return (number + 2**63) % 2**64 - 2**63


def to_names(values: Sequence[int]) -> Int64:
    """Return integers of 64 bits as `signed` does, (n,).

    Raises
    ------
    TypeError, ValueError
        As `signed`.
    """
    if type(values) is list and set(map(type, values)) == {int}:  # most calls
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass  # unsigned, or an error
    return np.array([signed(value) for value in values], np.int64)


def kind(name: str, names: Sequence[str], what: str) -> int:
    """Return the index of a name.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}; got {name!r}")
    return names.index(name)


def drawn_kinds(trees: Sequence[TokenTree], drawn: Drawn) -> int | Int32:
    """Return the index of how all nodes were drawn, or an index for each node, (N,).

    Raises
    ------
    ValueError
        If `drawn` is not one name, or one for each tree, or one for each node of a tree.
    TypeError
        If it is neither a name nor a sequence.
    """
    if isinstance(drawn, str):
        return kind(drawn, DRAWN, "drawn")
    if not hasattr(drawn, "__len__"):
        raise TypeError(f"drawn must be a name, or one for each tree, got {drawn!r}")
    if len(drawn) != len(trees):
        raise ValueError(f"drawn needs one entry for each of {len(trees)} trees, got {len(drawn)}")
    kinds: list[int] = []
    for tree, entry in zip(trees, drawn, strict=True):
        if isinstance(entry, str):
            kinds += [kind(entry, DRAWN, "drawn")] * len(tree)
        elif len(entry) != len(tree):
            raise ValueError(
                f"drawn per node needs {len(tree)} entries, the root's (not read) included, "
                f"got {len(entry)}"
            )
        else:
            kinds += [kind(name, DRAWN, "drawn") for name in entry]
    return np.array(kinds, np.int32)


def names_per_node(trees: Sequence[TokenTree], drawn: Drawn) -> list[tuple[str, ...]]:
    """Return how each node of each tree was drawn; raises as `drawn_kinds`."""
    kinds = drawn_kinds(trees, drawn)
    if isinstance(kinds, int):
        return [(DRAWN[kinds],) * len(tree) for tree in trees]
    ends = np.cumsum([len(tree) for tree in trees])
    return [tuple(DRAWN[k] for k in part) for part in np.split(kinds, ends[:-1])]


def one_for_each(values: Sequence[int] | int, size: int, what: str) -> Int64:
    """Return one integer for each, (size,), of which there may be one for all.

    Raises
    ------
    ValueError, TypeError
        If there is another number of them, or they are no integers.
    """
    if hasattr(values, "__index__") and not getattr(values, "shape", ()):
        return np.full(size, to_int64([index(values)], what)[0])
    array = to_int64(values, what)
    if len(array) != size:
        raise ValueError(f"{what} needs one entry for each of {size}, got {len(array)}")
    return array


def streams(
    size: int,
    request_ids: Sequence[int] | None,
    positions: Sequence[int] | int | None,
    what: str,
    *,
    random: bool,
) -> tuple[Int64 | None, Int64 | None]:
    """Return request ids and positions, (size,) each: they name the random numbers.

    Raises
    ------
    ValueError
        If random numbers are needed and something does not name them.
    """
    if positions is None and random:
        raise ValueError(
            f"{what} must be given where tokens are sampled: they name the random numbers, and "
            "the same numbers in every round would bias the output"
        )
    where = None if positions is None else one_for_each(positions, size, what)
    if request_ids is None and random and size > 1:
        raise ValueError(
            f"request_ids must be given where tokens of {size} sequences are sampled: they name "
            "the random numbers, which must not depend on the order of the batch"
        )
    if request_ids is None:
        return None, where
    if len(request_ids) != size:
        raise ValueError(
            f"request_ids needs one entry for each of {size} sequences, got {len(request_ids)}"
        )
    return to_names(request_ids), where
