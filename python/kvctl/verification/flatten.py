"""Trees, names and random streams of a batch as the flat arrays that libkvctl takes."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _core
from .._ffi.convert import to_input
from .._ffi.integers import to_int64
from ..tree import TokenTree

RULES = (
    "greedy",
    "target_only",
    "token_wise",
    "block",
    "recursive",
    "traversal",
    "best_of_k",
    "coupled",
    "typical",
)
DRAWN = ("deterministic", "independent", "without_replacement", "coupled")

_PLAIN = frozenset(np.dtype(name) for name in ("f2", "f4", "f8", "i4"))
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Drawn: TypeAlias = str | Sequence[str | Sequence[str]]


def tensor(array: Any, name: str) -> Any:
    """Return something libkvctl can read: DLPack objects in place, all else as an array."""
    if type(array) is np.ndarray and array.dtype in _PLAIN and array.flags.carray:
        return array  # most calls: the FFI takes it as it is
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack__"):
        array = np.ascontiguousarray(array)
        if array.dtype.kind in "OUSc":
            raise TypeError(f"{name} must be real numbers, got {array.dtype}")
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
    """Return the low 64 bits of an integer as the FFI passes them."""
    try:
        return (index(value) + 2**63) % 2**64 - 2**63
    except TypeError:
        raise TypeError(f"seeds and request ids must be integers, got {value!r}") from None


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


def flatten(trees: Sequence[TokenTree], drawn: Drawn) -> tuple[Int32, Int64]:
    """Return the nodes of all trees, (4, N), and where nodes and rows of each begin, (2, B + 1).

    Raises
    ------
    ValueError
        If `drawn` is not one name, or one for each tree, or one for each node of a tree.
    """
    nodes, ptrs = _core.TokenTree.pack([tree._core for tree in trees])
    if isinstance(drawn, str):
        nodes[3] = kind(drawn, DRAWN, "drawn")
        return nodes, ptrs
    if not hasattr(drawn, "__len__"):
        raise TypeError(f"drawn must be a name, or one for each tree, got {drawn!r}")
    if len(drawn) != len(trees):
        raise ValueError(f"drawn needs one entry for each of {len(trees)} trees, got {len(drawn)}")
    for tree, begin, entry in zip(trees, ptrs[0, :-1], drawn, strict=True):
        part = nodes[3, begin : begin + len(tree)]
        if isinstance(entry, str):
            part[:] = kind(entry, DRAWN, "drawn")
        elif len(entry) != len(tree):
            raise ValueError(
                f"drawn per node needs {len(tree)} entries, the root's (not read) included, "
                f"got {len(entry)}"
            )
        else:
            part[:] = [kind(name, DRAWN, "drawn") for name in entry]
    return nodes, ptrs


def one_for_each(values: Sequence[int] | int, size: int, what: str) -> Int64 | int:
    """Return integers, of which there is one for all or one for each.

    Raises
    ------
    ValueError, TypeError
        If there is another number of them, or they are no integers.
    """
    if hasattr(values, "__index__") and not getattr(values, "shape", ()):
        values = [index(values)]
        return int(to_int64(values, what)[0])
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
) -> Int64:
    """Return request ids and positions, (2, size): what names the random numbers.

    Raises
    ------
    ValueError
        If random numbers are needed and something does not name them.
    """
    table = np.zeros((2, size), np.int64)
    if positions is not None:
        table[1] = one_for_each(positions, size, what)
    elif random:
        raise ValueError(
            f"{what} must be given where tokens are sampled: they name the random numbers, and "
            "the same numbers in every round would bias the output"
        )
    if request_ids is not None:
        if len(request_ids) != size:
            raise ValueError(
                f"request_ids needs one entry for each of {size} sequences, got {len(request_ids)}"
            )
        table[0] = [signed(i) for i in request_ids]
    elif random and size > 1:
        raise ValueError(
            f"request_ids must be given where tokens of {size} sequences are sampled: they name "
            "the random numbers, which must not depend on the order of the batch"
        )
    return table
