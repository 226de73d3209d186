"""Calls of packed functions as integers, which go to every worker in one message.

A call names a function of `FUNCTIONS`, where its result goes, and its arguments. Integers, None,
shapes, tensors and lists of them can be arguments, and so can what every worker has of its own: its
runner, its cache, and its checkpoints.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tvm_ffi

from ..._ffi import functions as ffi
from ..._ffi.convert import to_numpy, to_tensor
from .. import heads

#: What a program may call. A worker finds a function by its place here.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"runner.{name}": getattr(ffi.runner, name)
        for name in (
            "complete",
            "decode",
            "embed",
            "forward_states",
            "prefill",
            "prefill_embeddings",
            "prefill_states",
            "set_join_logits",
            "verify",
            "verify_states",
        )
    },
    **{
        f"cache.{name}": getattr(ffi.cache, name)
        for name in (
            "checkpoint",
            "commit",
            "drop_pending",
            "evict",
            "get_kv",
            "popn",
            "rollback",
            "set_sliding_window",
        )
    },
    **{
        f"vm.{name}": getattr(ffi.vm_builtin, name)
        for name in (
            "kv_state_add_sequence",
            "kv_state_clear",
            "kv_state_fork_sequence",
            "kv_state_remove_sequence",
        )
    },
    "gather_kv": heads.gather_kv,
    "gather_sequence": heads.gather_sequence,
    "scatter_sequence": heads.scatter_sequence,
    "undo": lambda cache, ids, lengths: _undo(cache, ids, lengths),
    "join_kept": lambda runner, kept: ffi.runner.gather_logits(runner, _logits(kept)),
    "sample_kept": lambda runner, kept, *names: _sample(runner, kept, *names),
    "forget": lambda checkpoint: None,  # the worker does it
}
_PLACES = {name: place for place, name in enumerate(FUNCTIONS)}
_BY_PLACE = list(FUNCTIONS.items())


class Own(Enum):
    """What every worker has of its own."""

    RUNNER = 0
    CACHE = 1


@dataclass(frozen=True)
class Kept:
    """A checkpoint that every worker keeps under one number."""

    number: int


@dataclass(frozen=True)
class OnFirst:
    """What worker 0 alone is given, in this process; the others get None."""

    value: Any


class Call(NamedTuple):
    """A call: its result is kept under `target`, or returned where that is -1."""

    name: str
    args: tuple[Any, ...]
    target: int = -1


_DTYPES = [
    np.dtype(getattr(ml_dtypes, name, name))
    for name in ("int32", "int64", "float32", "float16", "bfloat16", "bool", "uint8")
]
_DTYPE_PLACES = {dtype: place for place, dtype in enumerate(_DTYPES)}
_OWNS = list(Own)
_OWN_PLACES = {own: place for place, own in enumerate(_OWNS)}
_NONE, _INT, _SHAPE, _TENSOR, _LIST, _OWN, _KEPT = range(7)


def encode(head: Sequence[int], calls: Sequence[Call]) -> bytes:
    """Return a program behind some integers of its sender's.

    Bytes, since every integer of a Shape would be looked at by Python once more.

    Raises
    ------
    TypeError
        If an argument is of another type.
    """
    out = array("q", head)
    out.append(len(calls))
    for name, args, target in calls:
        out.extend((_PLACES[name], target, len(args)))
        for arg in args:
            _put(out, arg)
    return out.tobytes()


def decode(data: bytes, head: int) -> tuple[Sequence[int], list[Call]]:
    """Return so many integers of the sender's, and the calls of the program behind them."""
    program = array("q", data)
    calls, at = [], head + 1
    for _ in range(program[head]):
        place, target, count = program[at : at + 3]
        at += 3
        args = []
        for _ in range(count):
            arg, at = _get(program, at)
            args.append(arg)
        calls.append(Call(_BY_PLACE[place][0], tuple(args), target))
    return program[:head], calls


def _undo(cache: Any, seq_ids: Iterable[int], lengths: Iterable[int]) -> None:
    """Take back what sequences have got since they had these lengths; -1: they were not there."""
    length_of = ffi.vm_builtin.attention_kv_cache_get_sequence_length
    for seq_id, length in zip(seq_ids, lengths, strict=True):
        if length < 0:
            with contextlib.suppress(KeyError):  # not added yet, where the worker failed
                ffi.vm_builtin.kv_state_remove_sequence(cache, seq_id)
        elif (grown := length_of(cache, seq_id) - length) > 0:
            ffi.cache.popn(cache, seq_id, grown)


def _logits(result: Any) -> Any:
    """Return the logits of what a forward returned."""
    return result if isinstance(result, tvm_ffi.Tensor) else result[0]


def _sample(
    runner: Any, result: Any, temperatures: Any, seed: int, request_ids: Any, positions: Any
) -> Any:
    """Sample rows together with the other workers; temperatures come as the bits of numbers."""
    numbers = to_tensor(np.array(list(temperatures), np.int64).view(np.float64))
    return ffi.runner.sample_shards(runner, _logits(result), numbers, seed, request_ids, positions)


def function(name: str) -> Callable[..., Any]:
    """Return the function of a call."""
    return FUNCTIONS[name]


def _put(out: array[int], arg: Any) -> None:
    if isinstance(arg, tvm_ffi.Shape):
        out.extend((_SHAPE, len(arg), *arg))
    elif isinstance(arg, Own):
        out.extend((_OWN, _OWN_PLACES[arg]))
    elif isinstance(arg, int):  # bool included
        out.extend((_INT, int(arg)))
    elif isinstance(arg, np.ndarray):
        _put_tensor(out, arg)
    elif arg is None or isinstance(arg, OnFirst):
        out.append(_NONE)
    elif isinstance(arg, Kept):
        out.extend((_KEPT, arg.number))
    elif isinstance(arg, np.integer):
        out.extend((_INT, int(arg)))
    elif isinstance(arg, list | tuple | tvm_ffi.Array):
        out.extend((_LIST, len(arg)))
        for one in arg:
            _put(out, one)
    elif hasattr(arg, "__dlpack__"):
        _put_tensor(out, to_array(arg))
    else:
        raise TypeError(f"a worker cannot be sent a {type(arg).__name__}")


def to_array(tensor: Any) -> Any:
    """Return a tensor as an array that shares its memory; NumPy reads no bfloat16 by itself."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if str(tensor.dtype) != "bfloat16":
        return to_numpy(tensor)
    bits = ffi.runtime.TVMTensorCreateView(
        tensor, tvm_ffi.Shape(tensor.shape), tvm_ffi.dtype("uint16"), 0
    )
    return to_numpy(bits).view(ml_dtypes.bfloat16)


def _put_tensor(out: array[int], tensor: npt.NDArray[Any]) -> None:
    data = tensor.tobytes()
    out.extend((_TENSOR, _DTYPE_PLACES[tensor.dtype], tensor.ndim, *tensor.shape))
    out.append(-(-len(data) // 8))
    out.frombytes(data + bytes(-len(data) % 8))


def _get(program: array[int], at: int) -> tuple[Any, int]:
    """Return the argument at a place, and the place behind it."""
    tag = program[at]
    if tag == _NONE:
        return None, at + 1
    value, at = program[at + 1], at + 2
    if tag == _INT:
        return value, at
    if tag == _SHAPE:
        return tvm_ffi.Shape(tuple(program[at : at + value])), at + value
    if tag == _OWN:
        return _OWNS[value], at
    if tag == _KEPT:
        return Kept(value), at
    if tag == _TENSOR:
        return _get_tensor(_DTYPES[value], program, at)
    many = []
    for _ in range(value):
        one, at = _get(program, at)
        many.append(one)
    return many, at


def _get_tensor(dtype: np.dtype[Any], program: array[int], at: int) -> tuple[tvm_ffi.Tensor, int]:
    ndim = program[at]
    shape = tuple(program[at + 1 : at + 1 + ndim])
    at += 2 + ndim
    words = program[at : at + program[at - 1]]
    size = math.prod(shape) * dtype.itemsize
    data = np.frombuffer(words, np.uint8, size).view(dtype).reshape(shape)
    return to_tensor(data), at + len(words)
