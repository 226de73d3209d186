"""kvctl.RecurrentState: rolling back, memory, and what is refused."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import kvctl
from kvctl.recurrent.state import RecurrentState
from recurrent_trial import (
    INIT,
    LAYERS,
    assert_state,
    create,
    forward,
    run,
)


def test_popn_lands_in_the_middle_of_a_chunk_bit_for_bit():
    state = create()
    state.add_sequence(3)
    assert_state(state, 3, [])
    run(state, 3, [7, 8, 9, 10, 11])
    assert_state(state, 3, [7, 8, 9, 10, 11])
    assert state.popn(3, 2) == 0
    assert state.sequence_length(3) == 3
    assert_state(state, 3, [7, 8, 9])
    run(state, 3, [5])
    assert_state(state, 3, [7, 8, 9, 5])


def test_replay_lands_before_the_chunk_and_counts_the_tokens():
    state = create()
    state.add_sequence(0)
    run(state, 0, [1, 2], steps=False)
    run(state, 0, [3, 4, 5, 6], steps=False)
    assert state.plan_popn(0, 1) == (2, 0, 3)
    assert state.popn(0, 1) == 3
    assert state.sequence_length(0) == 2
    run(state, 0, [3, 4, 5], steps=False)
    assert_state(state, 0, [1, 2, 3, 4, 5])


def test_keep_steps_false_turns_snapshots_into_replay():
    state = create(keep_steps=False)
    state.add_sequence(0)
    run(state, 0, [1, 2])
    run(state, 0, [3, 4, 5], pending=True)
    assert state.commit([0], [[0, 1]]) == [2]
    assert state.sequence_length(0) == 2
    tree = kvctl.TokenTree([3, 4, 5], [-1, 0, 0])
    run(state, 0, [3, 4, 5], mask=tree)  # computed per node, kept nowhere
    assert state.commit([0], [[0, 2]]) == [2]
    run(state, 0, [3, 5])
    assert_state(state, 0, [1, 2, 3, 5])


def test_tree_in_two_rounds_commits_any_path():
    state = create()
    for seq_id in (1, 2):
        state.add_sequence(seq_id)
        run(state, seq_id, [seq_id, 9])
    state.begin_forward([2, 1], [3, 2], mask=[kvctl.TokenTree([4, 5, 6], [-1, 0, 0]), None])
    forward(state, [[4, 5, 6], [7, 8]], steps=True)
    state.end_forward()
    assert state.pending_length(2) == 3 and state.sequence_length(2) == 5
    assert state.pending_length(1) == 0
    with pytest.raises(
        ValueError, match="the parent of node 2 is 1, but it is pending with parent 0"
    ):
        state.begin_forward([2], [3], mask=[[-1, 0, 1, 1, 2, 2]])
    state.begin_forward([2], [3], mask=kvctl.Mask.tree([-1, 0, 0, 1, 2, 2]))
    assert state.num_roots == 2
    forward(state, [[10, 11, 12]], steps=True)
    state.end_forward()
    assert_state(state, 2, [2, 9, 4], position=3)  # a pending node's state can be looked at
    assert state.commit([2], [[0, 2, 5]]) == [0]
    assert_state(state, 2, [2, 9, 4, 6, 12])
    assert_state(state, 1, [1, 9, 7, 8])
    state.popn(2, 1)
    assert_state(state, 2, [2, 9, 4, 6])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.popn(0, 6), ValueError, "cannot go back to position 3"),
        (lambda s: s.popn(0, 10), ValueError, r"within \[0, 9\], the tokens of sequence 0; got 10"),
        (lambda s: s.popn(1, 0), KeyError, "no sequence 1"),
        (lambda s: s.add_sequence(0), ValueError, "already"),
        (lambda s: s.fork_sequence(0, 1, 2), ValueError, "cannot go back to position 2"),
        (lambda s: s.fork_sequence(0, 1, 10), IndexError, r"within \[0, 9\]"),
        (lambda s: s.begin_forward([0, 0], [1, 1]), ValueError, "more than once"),
        (lambda s: s.begin_forward([0], [0]), ValueError, "at least 1 token, got 0"),
        (lambda s: s.begin_forward([0], [2**32 + 7]), ValueError, "32 bits, got 4294967303"),
        (lambda s: s.begin_forward([0, 5], [1, 1]), KeyError, "no sequence 5"),
        (
            lambda s: s.begin_forward([0], [2], mask=[[-1, 1]]),
            IndexError,
            "parent of pending node",
        ),
        (
            lambda s: s.begin_forward([0], [2], mask=[[-1]]),
            ValueError,
            "tree of sequence 0 has 1 nodes",
        ),
        (lambda s: s.begin_forward([0], [2**62]), ValueError, "must fit 32 bits"),
        (lambda s: s.end_forward(), RuntimeError, "begin_forward first"),
        (lambda s: s.set_steps(0, 0, INIT[0]), RuntimeError, "begin_forward first"),
        (lambda s: s.commit([0], [[0]]), IndexError, "0 pending tokens, there is no node 0"),
        (lambda s: s.commit([0], []), ValueError, "1 sequences but 0 lists"),
        (lambda s: s.get_state(0, 2), IndexError, "no layer 2"),
        (lambda s: s.get_state(0, 0, 5), IndexError, "no state 5"),
        (lambda s: s.get_state(0, 0, position=2), IndexError, "no state is kept at position 2"),
    ],
)
def test_mistakes_are_named_and_change_nothing(call, error, message):
    state = create()
    state.add_sequence(0)
    run(state, 0, list(range(9)))
    with pytest.raises(error, match=message):
        call(state)
    assert not state.in_forward
    assert_state(state, 0, list(range(9)))
    assert state.popn(0, 5) == 0


def test_mistakes_of_a_model_are_named_and_can_be_aborted():
    state = create()
    state.add_sequence(0)
    run(state, 0, [1, 2])
    state.begin_forward([0], [3])
    wrong = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"must have shape \(3, 2, 3\), got \(2, 2, 3\)"):
        state.set_steps(0, 0, wrong)
    with pytest.raises(ValueError, match=r"must have shape \(1, 2, 3\)"):
        state.set(0, 0, wrong)
    with pytest.raises(TypeError, match="must be float32, got int64"):
        state.set(0, 0, np.zeros((1, 2, 3), np.int64))
    with pytest.raises(ValueError, match="contiguous"):
        state.set(0, 0, np.zeros((1, 3, 2), np.float32).transpose(0, 2, 1))
    state.set(0, 0, wrong[:1])
    with pytest.raises(RuntimeError, match="not state 1 of layer 1"):
        state.end_forward()
    assert state.in_forward
    state.abort()
    assert_state(state, 0, [1, 2])
    state.begin_forward([0], [2], mask=[[-1, -1]])
    with pytest.raises(ValueError, match="must compute a state per token"):
        state.set(0, 0, wrong[:1])
    with pytest.raises(ValueError, match="must compute a state per token"):
        state.get_rows(np.empty((2, 2), np.int32), steps=False)
    state.abort()
    with pytest.raises(ZeroDivisionError), state.forward([0], [1]):
        _ = 1 / 0
    assert not state.in_forward and state.sequence_length(0) == 2


def test_memory_is_bounded_and_says_so():
    one = create().state_bytes
    assert one == LAYERS * sum(value.nbytes for value in INIT)
    with pytest.raises(ValueError, match="at least 2 states"):
        create(max_bytes=2 * one - 1)
    assert create(max_bytes=1000 * one, max_history=0).max_states == 1000  # for large trees
    state = create(max_bytes=6 * one, max_history=4)
    assert state.max_states == 6
    for seq_id in (0, 1):
        state.add_sequence(seq_id)
        run(state, seq_id, [1, 2, 3, 4])
    assert state.earliest_position(1) == 0 and state.earliest_position(0) > 0
    run(state, 0, [5], pending=True)
    with pytest.raises(kvctl.OutOfPagesError, match="keeps 5 states, and only 3 of the 6"):
        state.begin_forward([1], [5])
    assert_state(state, 0, [1, 2, 3, 4])
    assert_state(state, 1, [1, 2, 3, 4])


def test_a_checkpoint_outlives_the_history_and_lets_go():
    state = create(max_history=2, max_sequences=2)
    state.add_sequence(0)
    run(state, 0, [1, 2, 3])
    free = state.num_free_states
    point = state.checkpoint(0)
    for token in range(20):
        run(state, 0, [token])
    assert state.num_free_states == free - 1
    state.rollback(0, point)
    assert_state(state, 0, [1, 2, 3])
    other = create()
    other.add_sequence(0)
    with pytest.raises(ValueError, match="another recurrent state"):
        other.rollback(0, point)
    state.remove_sequence(0)
    state.add_sequence(0)
    with pytest.raises(ValueError, match="gone with the sequence"):
        state.rollback(0, point)
    del point
    gc.collect()
    assert state.num_free_states == state.max_states


def test_a_checkpoint_keeps_its_state_alive():
    state = create()
    state.add_sequence(0)
    point = state.checkpoint(0)
    del state
    gc.collect()
    del point  # whose destructor needs the state
    gc.collect()


@pytest.mark.parametrize("options", [{"num_layers": 2**40}, {"max_sequences": 2**20}])
def test_a_state_larger_than_the_machine_is_refused(options):
    sizes = {"num_layers": 2, "init_values": [np.zeros(2**20, np.float32)]}
    with pytest.raises(ValueError, match=r"the recurrent state would take .* GiB is all there is"):
        RecurrentState.create(**(sizes | options))
