"""Integers from users: what is taken as they are, and what is refused by name."""

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl._ffi.integers import one_int32, to_int32, to_int64, to_shape


@pytest.mark.parametrize(
    "values",
    [
        [3, -1, 7],
        (3, -1, 7),
        pytest.param(iter([3, -1, 7]), id="iterator"),
        {3: 0, -1: 0, 7: 0},
        [np.int64(3), np.int32(-1), 7],
        np.array([3, -1, 7], np.int8),
        np.array([3, -1, 7], object),
        np.array([3, 0, -1, 0, 7])[::2],
        tvm_ffi.from_dlpack(np.array([3, -1, 7])),
    ],
    ids=str,
)
def test_whatever_holds_integers(values):
    assert to_int64(values, "x").tolist() == [3, -1, 7]


def test_shapes_take_the_same():
    for values in ([3, 7], (3, 7), iter([3, 7]), np.array([3, 7], np.uint16), [np.int64(3), 7]):
        assert tuple(to_shape(values, "x")) == (3, 7)
    assert tuple(to_shape([], "x")) == ()


@pytest.mark.parametrize("convert", [to_int64, to_int32, to_shape])
@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [True],
        [False, True],
        "12",
        ["1"],
        [None],
        np.zeros(2),
        np.ones(3, bool),
        [2**70, True],
    ],
)
def test_nothing_else_is_taken_for_integers(convert, values):
    with pytest.raises(TypeError, match="kept nodes must be integers, got"):
        convert(values, "kept nodes")


@pytest.mark.parametrize("convert", [to_int64, to_int32, to_shape])
def test_one_is_no_sequence(convert):
    with pytest.raises(TypeError, match="tokens must be a sequence of integers, got 5"):
        convert(5, "tokens")
    with pytest.raises(ValueError, match=r"tokens must have one dimension, got shape \(1, 2\)"):
        convert([[1, 2]], "tokens")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 2**70])
def test_integers_that_do_not_fit_64_bits(value):
    for convert in (to_int64, to_shape):
        with pytest.raises(ValueError, match="x must fit 64 bits"):
            convert([value], "x")


def test_integers_that_do_not_fit_32_bits():
    assert to_int32([2**31 - 1, -(2**31)], "x").dtype == np.int32
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match=f"x must fit 32 bits, got {value}"):
            to_int32([1, value], "x")
        with pytest.raises(ValueError, match=f"x must fit 32 bits, got {value}"):
            one_int32(value, "x")
    with pytest.raises(TypeError, match=r"x must be an integer, got 1\.5"):
        one_int32(1.5, "x")


def test_a_set_has_no_order():
    for values in ({3, 1}, frozenset({3, 1})):
        for convert in (to_int32, to_int64, to_shape):
            with pytest.raises(TypeError, match=r"tokens must be integers in an order"):
                convert(values, "tokens")
        for convert in (to_int32, to_int64, to_shape):
            assert sorted(convert(values, "stop", ordered=False)) == [1, 3]
    assert to_int64({3: 0, 1: 0}.keys(), "tokens").tolist() == [3, 1]
    with pytest.raises(TypeError, match="tokens must be integers in an order"):
        kvctl.TokenTree({3, 1}, [-1, 0])
    assert kvctl.Sampling(stop_tokens={3, 1}).params().stop_tokens.shape == (2,)
