"""kvctl.RecurrentState as TVM's own functions see it, and TVM's own state beside it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from kvctl.recurrent.state import RecurrentState
from recurrent_trial import (
    INIT,
    after,
    assert_state,
    create,
    forward,
    run,
)


def vm(name: str):
    return tvm_ffi.get_global_func(f"vm.builtin.{name}")


def test_tvm_functions_take_it():
    state = create()
    vm("kv_state_add_sequence")(state, 0)
    shape = tvm_ffi.Shape
    vm("kv_state_begin_forward")(state, shape((0,)), shape((4,)))
    out = np.empty((1, 4), np.int64)
    vm("rnn_state_get")(state, 1, 1, tvm_ffi.from_dlpack(out))
    assert (out[0] == INIT[1]).all()
    forward(state, [[1, 2, 3, 4]], steps=True)
    vm("kv_state_end_forward")(state)
    vm("kv_state_popn")(state, 0, 3)
    assert_state(state, 0, [1])
    vm("kv_state_fork_sequence")(state, 0, 1, -1)
    debug = vm("rnn_state_debug_get")(state, 1, 1, 1)
    assert (np.from_dlpack(debug) == after([1])[3]).all()
    # A tree waits for its commit; its parents are TVM's.
    vm("kv_state_begin_forward")(state, shape((0,)), shape((3,)), shape((-1, 0, 0)))
    forward(state, [[5, 6, 7]], steps=True)
    vm("kv_state_end_forward")(state)
    assert state.pending_length(0) == 3
    assert state.commit([0], [[0, 2]]) == [0]
    assert_state(state, 0, [1, 5, 7])
    vm("kv_state_remove_sequence")(state, 0)
    vm("kv_state_clear")(state)
    assert 1 not in state


def test_tvm_popn_and_fork_refuse_what_they_cannot_do_exactly():
    state = create()
    state.add_sequence(0)
    run(state, 0, [1, 2, 3], steps=False)
    with pytest.raises(ValueError, match="how many tokens to run again"):
        vm("kv_state_popn")(state, 0, 1)
    with pytest.raises(ValueError, match="how many tokens to run again"):
        vm("kv_state_fork_sequence")(state, 0, 1, 2)
    assert 1 not in state
    assert_state(state, 0, [1, 2, 3])
    vm("kv_state_popn")(state, 0, 3)
    assert_state(state, 0, [])


def test_tvm_own_state_forgets_where_ours_does_not():
    """T7: what the issue is about, seen on TVM's own state and on ours behind the same function."""
    pytest.importorskip("tvm")
    import tvm  # noqa: F401  (registers vm.builtin.rnn_state_create)

    init = tvm_ffi.from_dlpack(np.zeros(2, np.float32))
    shape = tvm_ffi.Shape

    def copy_row(state, seq_slots, history_slots, out):
        storage = np.from_dlpack(state)
        np.from_dlpack(out)[:] = storage[np.from_dlpack(seq_slots), np.from_dlpack(history_slots)]

    def store_row(state, seq_slots, history_slots, data):
        storage = np.from_dlpack(state)
        slots = (np.from_dlpack(history_slots) + 1) % storage.shape[1]
        storage[np.from_dlpack(seq_slots), slots] = np.from_dlpack(data)

    getter, setter = tvm_ffi.convert(copy_row), tvm_ffi.convert(store_row)

    def chunk_then_popn():
        create_state = tvm_ffi.get_global_func("vm.builtin.rnn_state_create")
        state = create_state(1, 1, 8, [getter], [setter], [init])
        vm("kv_state_add_sequence")(state, 0)
        vm("kv_state_begin_forward")(state, shape((0,)), shape((3,)))
        if state_is_ours(state):
            steps = np.arange(6, dtype=np.float32).reshape(3, 2)
            tvm_ffi.get_global_func("kvctl.recurrent.set_steps")(
                state, 0, 0, tvm_ffi.from_dlpack(steps)
            )
        else:
            last = np.array([[4, 5]], np.float32)
            vm("rnn_state_set")(state, 0, 0, tvm_ffi.from_dlpack(last))
        vm("kv_state_end_forward")(state)
        vm("kv_state_popn")(state, 0, 1)
        return np.from_dlpack(vm("rnn_state_debug_get")(state, 0, 0, 0))

    state_is_ours = tvm_ffi.get_global_func("kvctl.recurrent.is_ours")
    with pytest.raises(RuntimeError, match="available history"):
        chunk_then_popn()
    tvm_ffi.get_global_func("kvctl.recurrent.install")()
    try:
        assert chunk_then_popn().tolist() == [2, 3]
    finally:
        tvm_ffi.get_global_func("kvctl.recurrent.uninstall")()
    with pytest.raises(RuntimeError, match="available history"):
        chunk_then_popn()
    with pytest.raises(TypeError, match="kvctl recurrent state is needed"):
        RecurrentState.wrap(
            tvm_ffi.get_global_func("vm.builtin.rnn_state_create")(
                1, 1, 8, [getter], [setter], [init]
            )
        )
