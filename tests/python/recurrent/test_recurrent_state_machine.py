"""kvctl.RecurrentState beside a model that keeps every state of every sequence for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.stateful as hs
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import kvctl
from recurrent_trial import (
    assert_state,
    create,
    forward,
)


class Beside(hs.RuleBasedStateMachine):
    """Random operations on a RecurrentState, each sequence beside the list of its tokens.

    The expected state of any position is computed anew from the tokens, so nothing is shared with
    the code under test. `steps` False runs the same operations in replay mode, where the test runs
    again what it is told to.
    """

    @dataclass
    class Sequence:
        tokens: list[int]
        pending: list[tuple[int, int]] = field(default_factory=list)  # parent, token

        def path(self, node: int) -> list[int]:
            above: list[int] = []
            while node >= 0:
                above.append(self.pending[node][1])
                node = self.pending[node][0]
            return self.tokens + above[::-1]

    @hs.initialize(steps=st.booleans(), max_history=st.integers(0, 6), scarce=st.booleans())
    def start(self, steps, max_history, scarce):
        one = create().state_bytes
        self.steps = steps
        self.state = create(
            max_history=max_history, keep_steps=steps, max_bytes=(12 if scarce else 900) * one
        )
        self.scarce = scarce
        self.model: dict[int, Beside.Sequence] = {}
        self.checkpoints: dict[int, tuple[object, Beside.Sequence]] = {}

    def pick(self, data) -> int:
        return data.draw(st.sampled_from(sorted(self.model)))

    @hs.rule()
    def add(self):
        free = next(i for i in range(9) if i not in self.model)
        if len(self.model) == 4:
            with pytest.raises(RuntimeError, match="max_sequences"):
                self.state.add_sequence(free)
            return
        self.state.add_sequence(free)
        self.model[free] = self.Sequence([])

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data())
    def remove(self, data):
        seq_id = self.pick(data)
        self.state.remove_sequence(seq_id)
        del self.model[seq_id]
        self.checkpoints.pop(seq_id, None)

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data(), abort=st.integers(0, 5))
    def step(self, data, abort):
        ids = data.draw(st.permutations(sorted(self.model)).map(lambda p: p[: 1 + len(p) // 2]))
        masks, tokens = [], []
        for seq_id in ids:
            pending = self.model[seq_id].pending
            count = data.draw(st.integers(1, 4))
            tokens.append(data.draw(st.lists(st.integers(0, 99), min_size=count, max_size=count)))
            if self.steps and (pending or data.draw(st.booleans())):
                parents = [parent for parent, _ in pending]
                for node in range(len(pending), len(pending) + count):
                    parents.append(data.draw(st.integers(-1, node - 1)))
                masks.append(parents)
            elif pending:  # without steps only the last pending token has a state
                masks.append(list(range(-1, len(pending) + count - 1)))
            else:
                masks.append(None)
        before = self.snapshot()
        if not all(map(self.has_last_state, ids)):
            with pytest.raises(ValueError, match="no state is kept after pending node"):
                self.state.begin_forward(ids, [len(one) for one in tokens], mask=masks)
            assert self.snapshot() == before
            return
        try:
            self.state.begin_forward(ids, [len(one) for one in tokens], mask=masks)
        except kvctl.OutOfPagesError:
            assert self.scarce
            assert self.snapshot() == before
            return
        forward(self.state, tokens, steps=self.steps)
        if abort == 0:
            self.state.abort()
            return
        self.state.end_forward()
        for seq_id, mask, new in zip(ids, masks, tokens, strict=True):
            sequence = self.model[seq_id]
            if mask is None:
                sequence.tokens += new
            else:
                sequence.pending += zip(mask[-len(new) :], new, strict=True)

    def has_last_state(self, seq_id: int) -> bool:
        """Whether a sequence can grow: without steps popn may have left the middle of a chunk."""
        try:
            self.state.get_state(seq_id, 0, position=self.state.sequence_length(seq_id))
        except IndexError:
            assert not self.steps and self.model[seq_id].pending
            return False
        return True

    def land(self, seq_id: int, tokens: list[int], replay: int) -> None:
        """Follow a rollback, and run the tokens again that it names."""
        assert self.steps is False or replay == 0
        kept = len(tokens) - replay
        assert self.state.sequence_length(seq_id) == kept
        self.model[seq_id] = self.Sequence(tokens[:kept])
        assert_state(self.state, seq_id, tokens[:kept])
        if replay:
            self.state.begin_forward([seq_id], [replay])
            forward(self.state, [tokens[kept:]], steps=self.steps)
            self.state.end_forward()
            self.model[seq_id] = self.Sequence(tokens)

    def snapshot(self):
        return {
            seq_id: (self.state.sequence_length(seq_id), self.state.earliest_position(seq_id))
            for seq_id in self.model
        }

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data(), n=st.integers(0, 9))
    def popn(self, data, n):
        seq_id = self.pick(data)
        sequence = self.model[seq_id]
        left = len(sequence.pending) - n
        target = len(sequence.tokens) + left
        earliest = self.state.earliest_position(seq_id)
        if left < 0 and target < max(earliest, 0):
            before = self.snapshot()
            with pytest.raises(ValueError, match="popn"):
                self.state.popn(seq_id, n)
            assert self.snapshot() == before
            return
        replay = self.state.popn(seq_id, n)
        if left >= 0:
            assert replay == 0
            sequence.pending = sequence.pending[:left]
        else:
            self.land(seq_id, sequence.tokens[:target], replay)

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data())
    def commit(self, data):
        seq_id = self.pick(data)
        sequence = self.model[seq_id]
        node = data.draw(st.integers(-1, len(sequence.pending) - 1))
        if not self.steps and sequence.pending and data.draw(st.booleans()):
            node = len(sequence.pending) - 1
        tokens, path = sequence.path(node), []
        while node >= 0:
            path.insert(0, node)
            node = sequence.pending[node][0]
        (replay,) = self.state.commit([seq_id], [path])
        self.land(seq_id, tokens, replay)

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data())
    def drop_pending(self, data):
        seq_id = self.pick(data)
        self.state.abort([seq_id])
        self.model[seq_id].pending = []

    @hs.precondition(lambda self: 0 < len(self.model) < 4)
    @hs.rule(data=st.data())
    def fork(self, data):
        parent = self.pick(data)
        child = next(i for i in range(9) if i not in self.model)
        sequence = self.model[parent]
        total = len(sequence.tokens) + len(sequence.pending)
        position = data.draw(st.integers(-1, total))
        if 0 < position < self.state.earliest_position(parent):
            with pytest.raises(ValueError, match="fork_sequence"):
                self.state.fork_sequence(parent, child, position)
            assert child not in self.state
            return
        replay = self.state.fork_sequence(parent, child, position)
        position = total if position == -1 else position
        extra = position - len(sequence.tokens)
        if extra >= 0 and position > 0:
            assert replay == 0
            self.model[child] = self.Sequence(list(sequence.tokens), sequence.pending[:extra])
        else:
            self.land(child, sequence.tokens[:position], replay)

    @hs.precondition(lambda self: self.model)
    @hs.rule(data=st.data())
    def checkpoint(self, data):
        seq_id = self.pick(data)
        sequence = self.model[seq_id]
        saved = self.Sequence(list(sequence.tokens), list(sequence.pending))
        self.checkpoints[seq_id] = (self.state.checkpoint(seq_id), saved)

    @hs.precondition(lambda self: self.checkpoints)
    @hs.rule(data=st.data())
    def rollback(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.checkpoints)))
        point, saved = self.checkpoints[seq_id]
        self.state.rollback(seq_id, point)
        self.model[seq_id] = self.Sequence(list(saved.tokens), list(saved.pending))

    @hs.invariant()
    def same(self):
        for seq_id, sequence in getattr(self, "model", {}).items():
            assert self.state.pending_length(seq_id) == len(sequence.pending)
            assert self.state.sequence_length(seq_id) == len(sequence.tokens) + len(
                sequence.pending
            )
            assert_state(self.state, seq_id, sequence.tokens)
            if self.steps:
                for node in range(len(sequence.pending)):
                    position = len(sequence.tokens) + 1 + node
                    assert_state(self.state, seq_id, sequence.path(node), position)


Beside.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBeside = Beside.TestCase
