"""Rows of arrays of any library: a part of them, some of them, several joined."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from kvctl.engine import rows

VALUES = np.arange(24, dtype=np.float32).reshape(6, 4)


def torch_tensor(values):
    return pytest.importorskip("torch").from_numpy(values.copy())


KINDS = {"numpy": np.copy, "tvm_ffi": tvm_ffi.from_dlpack, "torch": torch_tensor}


@pytest.fixture(params=KINDS)
def array(request):
    return KINDS[request.param](VALUES.copy())


def numpy(array):
    return array if isinstance(array, np.ndarray) else np.from_dlpack(array)


def test_a_part(array):
    np.testing.assert_array_equal(numpy(rows.some_rows(array, 2, 5)), VALUES[2:5])


def test_some_in_any_order(array):
    np.testing.assert_array_equal(numpy(rows.take_rows(array, [4, 0, 4])), VALUES[[4, 0, 4]])


def test_a_view_of_a_tensor_that_cannot_be_sliced():
    """How rows on a device are reached; the host's memory is as good."""
    tensor = pytest.importorskip("tvm").runtime.tensor(VALUES)
    view = rows._view(tensor, 1, 4)
    np.testing.assert_array_equal(np.from_dlpack(view), VALUES[1:4])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_joined(kind):
    one, two = KINDS[kind](VALUES[:2].copy()), KINDS[kind](VALUES[2:].copy())
    assert rows.joinable(one) == rows.joinable(two) != rows.joinable(KINDS[kind](VALUES[:, :3]))
    np.testing.assert_array_equal(numpy(rows.join_rows([one, two])), VALUES)
    assert rows.join_rows([one]) is one


def test_pairs_of_sparse_rows():
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    pair = (ids, VALUES[:3, :2])
    assert rows.num_rows(pair) == 3 and rows.num_rows(VALUES) == 6
    joined = rows.join_rows([pair, pair])
    np.testing.assert_array_equal(joined[0], np.concatenate([ids, ids]))
    assert joined[1].shape == (6, 2)


def test_what_cannot_be_joined():
    assert rows.joinable(tvm_ffi.from_dlpack(VALUES.copy())) is None
