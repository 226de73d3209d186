"""The operation that makes logits depend on the number of rows is named."""

from contextlib import contextmanager

import numpy as np
import pytest
import tvm_ffi

from kvctl import ModelRunner
from kvctl.checks.bitwise import check_bitwise
from kvctl.checks.operations import Event, can_record, first_difference, recorded
from kvctl.tree import TokenTree

_ATTENTION = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"


@contextmanager
def depending_on_rows(name, call):
    """Let a function that libraries bind change the last row, where there are several.

    Only the calls of that number in a forward do; a forward begins with `kvctl.model.take_rows`.
    """
    own, begin = (tvm_ffi.get_global_func(one) for one in (name, "kvctl.model.take_rows"))
    calls = [0]

    def changed(*arguments):
        result = own(*arguments)
        out = np.from_dlpack(arguments[-1])
        rows = out.reshape(-1, *out.shape[2:]) if out.shape[0] == 1 else out
        if calls[0] == call and len(rows) > 1:
            rows[-1] += np.float32(1e-3)
        calls[0] += 1
        return result

    def begins(*arguments):
        calls[0] = 0
        return begin(*arguments)

    tvm_ffi.register_global_func(name, changed, override=True)
    if name != "kvctl.model.take_rows":
        tvm_ffi.register_global_func("kvctl.model.take_rows", begins, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, own, override=True)
        tvm_ffi.register_global_func("kvctl.model.take_rows", begin, override=True)


@pytest.mark.parametrize(
    ("name", "call", "place", "shape"),
    [
        ("kvctl.model.rms_norm", 0, "before all attention", "(1, 3, 64)"),
        ("kvctl.model.linear", 0, "before all attention", "(1, 3, 256)"),
        (_ATTENTION, 1, "of layer 1", "(3, 4, 32)"),
        ("kvctl.model.linear_add", 1, "behind the attention of layer 0", "(1, 3, 64)"),
        ("kvctl.model.silu_mul", 0, "behind the attention of layer 0", "(1, 3, 96)"),
        ("kvctl.model.linear", 4, "behind the attention of layer 1", "(1, 3, 256)"),
    ],
)
def test_an_operation_of_a_compiled_model(tiny_model, name, call, place, shape):
    with depending_on_rows(name, call):
        runner = ModelRunner.load(tiny_model)
        found = {one.what: one for one in check_bitwise(runner, rows=3, batch=2)}
    assert found["1 rows"].same
    one = found["3 rows"]
    assert not one.same and f"operation {name} {place}, which gives {shape}" in one.where
    assert name in found["a tree of 5 rows"].where
    assert not any(id in runner.cache for id in range(2))


def test_an_operation_that_depends_on_the_batch(tiny_model):
    with depending_on_rows("kvctl.model.silu_mul", 1):
        found = {
            one.what: one for one in check_bitwise(ModelRunner.load(tiny_model), rows=2, batch=3)
        }
    for size in (2, 3):
        where = found[f"{size} sequences"].where
        assert "row 0, operation kvctl.model.silu_mul behind the attention of layer 1" in where


def test_nothing_is_recorded_outside_of_the_block(tiny_model):
    runner = ModelRunner.load(tiny_model)
    assert can_record(runner)
    runner.cache.add_sequence(0)
    with recorded(runner) as events:
        runner.prefill([0], [[1, 2, 3]])
    count = len(events)
    assert count > 10
    runner.decode([0], [4])
    assert len(events) == count
    with pytest.raises(ZeroDivisionError), runner.functions.instrumented(lambda *_: 1 / 0):
        runner.verify([0], [TokenTree.chain([5])])
    runner.decode([0], [6])
    assert runner.cache.sequence_length(0) == 5


def test_what_has_no_axis_of_rows_is_not_compared():
    one = Event("x", np.zeros((1, 3, 2), np.float32))
    assert not Event("x", np.ones((3, 2), np.float32)).differs(0, 3, one)
    assert not Event("x", np.ones((1, 3, 2), np.float32)).differs(0, 3, one)
    assert not Event("x", np.ones((4, 3, 2), np.float32)).differs(0, 3, one)
    many = Event("x", np.zeros((1, 3, 4), np.float32))
    many.value[0, :, 3] = 1
    alone = Event("x", np.zeros((1, 3, 1), np.float32))
    assert [many.differs(row, 4, alone) for row in range(4)] == [False, False, False, True]
    assert first_difference([many], 4, [(3, [alone])]) is many
    assert first_difference([many], 4, [(3, [Event("y", alone.value)])]) is None
