"""Programs as bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi

from kvctl.distributed.messages.program import Call, Kept, OnFirst, Own, decode, encode, to_array

HEAD = (3, -1, 1 << 40)


def travel(*args, target=-1):
    """What arrives of a call's arguments."""
    head, calls = decode(encode(HEAD, [Call("forget", (), 7), Call("undo", args, target)]), 3)
    assert tuple(head) == HEAD and calls[0] == Call("forget", (), 7)
    assert calls[1].name == "undo" and calls[1].target == target
    return calls[1].args


@pytest.mark.parametrize(
    "args",
    [
        (),
        (None, 5, -(1 << 62), Own.RUNNER, Own.CACHE, Kept(4)),
        (tvm_ffi.Shape((1, -2, 3)), tvm_ffi.Shape(())),
        ([[1, None], [], [tvm_ffi.Shape((9,)), [Kept(0)]]],),
    ],
)
def test_values(args):
    assert travel(*args, target=3) == args


def test_values_that_arrive_as_others():
    value = OnFirst([1])
    assert travel(True, np.int32(-4), value, (1, 2)) == (1, -4, None, [1, 2])


@pytest.mark.parametrize(
    "dtype", ["int32", "int64", "float32", "float16", "bfloat16", "bool", "uint8"]
)
@pytest.mark.parametrize("shape", [(0,), (3,), (1, 8), (2, 3, 5), (4, 0), ()])
def test_tensors(dtype, shape):
    size = int(np.prod(shape))
    array = (np.arange(size) % 3).reshape(shape).astype(getattr(ml_dtypes, dtype, dtype))
    found, behind = travel(array, 8)
    assert behind == 8 and to_array(found).dtype == array.dtype
    np.testing.assert_array_equal(to_array(found), array)


def test_tensors_that_are_no_arrays_and_not_contiguous():
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    found = travel(array[::2, 1::2], tvm_ffi.from_dlpack(array))
    np.testing.assert_array_equal(to_array(found[0]), array[::2, 1::2])
    np.testing.assert_array_equal(to_array(found[1]), array)


@pytest.mark.parametrize("arg", ["a text", 1.5, [object()]])
def test_what_cannot_be_sent(arg):
    with pytest.raises(TypeError, match=r"a worker cannot be sent a (str|float|object)"):
        encode((), [Call("undo", (arg,))])
