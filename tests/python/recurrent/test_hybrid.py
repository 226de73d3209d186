"""kvctl.HybridCache: whatever fails, both parts change or neither does.

One file, since all tests share one pair of caches and its oracle.
"""

from __future__ import annotations

import hypothesis.stateful as hs
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import kvctl
from kvctl.recurrent.hybrid_cache import HybridCache
from kvctl.recurrent.state import RecurrentState

HEADS, DIM, PAGE = 1, 8, 4


def create(*, pages=64, max_sequences=4, **options) -> HybridCache:
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM,
        max_total_tokens=pages * PAGE,
        page_size=PAGE,
        max_sequences=max_sequences,
        prefill_chunk_size=32,
    )
    options = {"max_history": 5, "max_sequences": max_sequences, **options}
    state = RecurrentState.create(num_layers=1, init_values=[np.zeros(2, np.float64)], **options)
    return HybridCache(cache, state)


def forward(hybrid: HybridCache, tokens: list[int], *, steps: bool) -> None:
    """A model of one layer of each kind: V holds the token, the state all tokens in order."""
    qkv = np.zeros((len(tokens), 3 * HEADS, DIM), np.float32)
    qkv[:, 2] = np.array(tokens, np.float32)[:, None]
    hybrid.cache.attention(0, qkv)
    state = hybrid.state
    rows = state.get_rows(np.empty((2, len(tokens)), np.int32), steps=steps)
    roots = state.get_roots(0, 0, np.empty((state.num_roots, 2)))
    out = np.empty((len(tokens) if steps else state.num_roots, 2))
    for token, source, target in zip(tokens, *rows, strict=True):
        before = out[source] if source >= 0 else roots[-1 - source]
        out[target] = before[0] * 1.5 + token, before[1] + 1
    (state.set_steps if steps else state.set)(0, 0, out)


def run(hybrid, seq_ids, tokens, *, steps=True, **options) -> None:
    with hybrid.forward(seq_ids, [len(one) for one in tokens], **options):
        forward(hybrid, [token for one in tokens for token in one], steps=steps)


def assert_holds(hybrid: HybridCache, seq_id: int, tokens: list[int]) -> None:
    """The committed part of a sequence is exactly these tokens, in both parts."""
    pending = hybrid.pending_length(seq_id)
    assert hybrid.cache.sequence_length(seq_id) == hybrid.sequence_length(seq_id)
    assert hybrid.sequence_length(seq_id) - pending == len(tokens)
    assert hybrid.cache.pending_length(seq_id) == pending
    _, values = hybrid.cache.get_kv(seq_id, 0, len(tokens))
    assert np.from_dlpack(values)[0, :, 0, 0].tolist() == tokens
    expected = np.zeros(2)
    for token in tokens:
        expected = np.array([expected[0] * 1.5 + token, expected[1] + 1])
    state = np.from_dlpack(hybrid.state.get_state(seq_id, 0))
    assert state.tobytes() == expected.tobytes()


def test_rolls_both_back_into_a_chunk():
    hybrid = create()
    hybrid.add_sequence(3)
    run(hybrid, [3], [[1, 2, 3, 4, 5]])
    assert hybrid.popn(3, 2) == 0
    assert_holds(hybrid, 3, [1, 2, 3])
    point = hybrid.checkpoint(3)
    run(hybrid, [3], [[7, 8]], mask=kvctl.TokenTree([7, 8], [-1, 0]))
    assert hybrid.commit([3], [[0]]) == [0]
    assert_holds(hybrid, 3, [1, 2, 3, 7])
    assert hybrid.fork_sequence(3, 4, 2) == 0
    assert_holds(hybrid, 4, [1, 2])
    hybrid.rollback(3, point)
    assert_holds(hybrid, 3, [1, 2, 3])
    assert 4 in hybrid and 5 not in hybrid
    hybrid.remove_sequence(4)
    assert 4 not in hybrid
    hybrid.clear()
    assert 3 not in hybrid.cache and 3 not in hybrid.state


@pytest.mark.parametrize("path", [[0.6], [True], ["0"]])
def test_nodes_that_are_no_integers_are_refused(path):
    hybrid = create()
    hybrid.add_sequence(3)
    run(hybrid, [3], [[7, 8]], mask=kvctl.TokenTree([7, 8], [-1, 0]))
    with pytest.raises(TypeError, match="kept nodes must be integers"):
        hybrid.commit([3], [path])
    assert hybrid.pending_length(3) == 2
    assert hybrid.commit([3], [[0]]) == [0]


def test_ids_may_come_from_an_iterator():
    hybrid = create()
    hybrid.add_sequence(3)
    tree = kvctl.TokenTree([7, 8], [-1, 0])
    with hybrid.forward(iter([3]), iter([2]), mask=tree):
        forward(hybrid, [7, 8], steps=True)
    hybrid.abort(iter([3]))
    assert hybrid.pending_length(3) == hybrid.cache.pending_length(3) == 0
    run(hybrid, [3], [[7, 8]], mask=tree)
    hybrid.commit(iter([3]), iter([iter([0])]))
    assert_holds(hybrid, 3, [7])


def test_what_is_no_id_or_checkpoint_is_called_by_its_name():
    hybrid = create()
    hybrid.add_sequence(3)
    for call in (
        lambda: hybrid.begin_forward(3, [1]),
        lambda: hybrid.commit(3, [[0]]),
        lambda: hybrid.abort(3),
    ):
        with pytest.raises(TypeError, match="seq_ids must be a sequence of integers, got 3"):
            call()
    with pytest.raises(TypeError, match="append_lengths must be a sequence of integers, got 1"):
        hybrid.begin_forward([3], 1)
    for other in (5, hybrid.cache.checkpoint(3), hybrid.state.checkpoint(3)):
        with pytest.raises(TypeError, match="rollback needs a checkpoint of a HybridCache"):
            hybrid.rollback(3, other)


def test_replay_takes_both_back_to_the_chunk():
    hybrid = create()
    hybrid.add_sequence(0)
    run(hybrid, [0], [[1, 2]], steps=False)
    run(hybrid, [0], [[3, 4, 5, 6]], steps=False, pending=True)
    assert hybrid.commit([0], [[0, 1, 2]]) == [3]
    assert_holds(hybrid, 0, [1, 2])
    run(hybrid, [0], [[3, 4, 5]], steps=False)
    assert hybrid.popn(0, 1) == 2
    assert_holds(hybrid, 0, [1, 2])
    run(hybrid, [0], [[3, 4]], steps=False)
    assert hybrid.fork_sequence(0, 1, 3) == 1
    assert_holds(hybrid, 1, [1, 2])
    assert_holds(hybrid, 0, [1, 2, 3, 4])


def test_too_few_pages_leave_the_state_alone():
    hybrid = create(pages=2)
    hybrid.add_sequence(0)
    run(hybrid, [0], [[1, 2, 3]])
    with pytest.raises(kvctl.OutOfPagesError, match="page"):
        hybrid.begin_forward([0], [6])
    assert not hybrid.state.in_forward
    assert_holds(hybrid, 0, [1, 2, 3])
    run(hybrid, [0], [[4, 5]])
    assert_holds(hybrid, 0, [1, 2, 3, 4, 5])


def test_too_few_slots_leave_the_cache_alone():
    hybrid = create(max_bytes=6 * 16)
    hybrid.add_sequence(0)
    run(hybrid, [0], [[1, 2, 3]])
    free = hybrid.cache.num_available_pages
    with pytest.raises(kvctl.OutOfPagesError, match="keeps 6 states"):
        hybrid.begin_forward([0], [6])
    assert hybrid.cache.num_available_pages == free
    run(hybrid, [0], [[4]])
    assert_holds(hybrid, 0, [1, 2, 3, 4])


def test_a_history_that_is_too_short_leaves_the_cache_alone():
    hybrid = create(max_history=2)
    hybrid.add_sequence(0)
    run(hybrid, [0], [[1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match="cannot go back to position 2"):
        hybrid.popn(0, 3)
    with pytest.raises(ValueError, match="cannot go back to position 1"):
        hybrid.fork_sequence(0, 1, 1)
    assert 1 not in hybrid.cache and 1 not in hybrid.state
    assert_holds(hybrid, 0, [1, 2, 3, 4, 5])


class Breaks:
    """A part whose named operation fails, as a cache out of pages would."""

    def __init__(self, part, operation):
        self._part, self._operation = part, operation

    def __getattr__(self, name):
        if name == self._operation:
            return self._fail
        return getattr(self._part, name)

    def __contains__(self, seq_id):
        return seq_id in self._part

    def _fail(self, *args, **options):
        raise kvctl.OutOfPagesError("no page is free")


OPERATIONS = {
    "add_sequence": (5,),
    "fork_sequence": (0, 5, 2),
    "remove_sequence": (0,),
    "popn": (0, 1),
    "commit": ([1], [[0]]),
    "begin_forward": ([0], [2]),
    "checkpoint": (0,),
    "rollback": (0, None),
    "abort": ([1],),
}
# What the state would refuse is asked of it before anything happens; removing and dropping cannot
# fail in it once its sequence is known to be there.
ASKED = {"popn": "plan_popn", "commit": "plan_commit", "rollback": "check_rollback"}
FAILURES = [("cache", operation, operation) for operation in OPERATIONS]
FAILURES += [
    ("state", operation, ASKED.get(operation, operation))
    for operation in OPERATIONS
    if operation not in ("remove_sequence", "abort")
]


@pytest.mark.parametrize(("part", "operation", "fails"), FAILURES)
def test_a_failure_of_either_part_changes_neither(part, operation, fails):
    hybrid = create()
    for seq_id in (0, 1):
        hybrid.add_sequence(seq_id)
        run(hybrid, [seq_id], [[1, 2, 3]])
    point = hybrid.checkpoint(0)
    run(hybrid, [1], [[4, 5]], pending=True)
    run(hybrid, [0], [[9]])
    whole = (hybrid.cache, hybrid.state)
    broken = {"cache": hybrid.cache, "state": hybrid.state}
    broken[part] = Breaks(broken[part], fails)
    pair = HybridCache(broken["cache"], broken["state"])
    arguments = (0, point) if operation == "rollback" else OPERATIONS[operation]
    with pytest.raises(kvctl.OutOfPagesError, match="no page is free"):
        getattr(pair, operation)(*arguments)
    hybrid = HybridCache(*whole)
    assert 5 not in hybrid.cache and 5 not in hybrid.state
    assert_holds(hybrid, 0, [1, 2, 3, 9])
    assert_holds(hybrid, 1, [1, 2, 3])
    assert hybrid.pending_length(1) == 2
    assert hybrid.commit([1], [[0, 1]]) == [0]
    assert_holds(hybrid, 1, [1, 2, 3, 4, 5])


def test_a_forward_that_left_something_out_ends_neither():
    hybrid = create()
    hybrid.add_sequence(0)
    state = RecurrentState.create(num_layers=2, init_values=[np.zeros(2)])
    pair = HybridCache(hybrid.cache, state)
    state.add_sequence(0)
    pair.begin_forward([0], [1])
    state.set(0, 0, np.ones((1, 2)))
    with pytest.raises(RuntimeError, match="not state 0 of layer 1"):
        pair.end_forward()
    with pytest.raises(RuntimeError, match="remove_sequence is not possible"):
        pair.remove_sequence(0)
    pair.abort()
    assert pair.sequence_length(0) == 0 and pair.cache.sequence_length(0) == 0


def test_parts_out_of_step_are_noticed():
    hybrid = create()
    hybrid.add_sequence(0)
    run(hybrid, [0], [[1, 2, 3]])
    hybrid.cache.popn(0, 1)
    for call in (lambda: hybrid.begin_forward([0], [1]), lambda: hybrid.popn(0, 1)):
        with pytest.raises(RuntimeError, match="2 tokens in the paged cache and 3 in"):
            call()
    hybrid.state.popn(0, 1)
    run(hybrid, [0], [[5]])
    assert_holds(hybrid, 0, [1, 2, 5])


class Together(hs.RuleBasedStateMachine):
    """Random operations with scarce pages and slots: the two parts never part."""

    @hs.initialize(steps=st.booleans(), pages=st.integers(4, 14), slots=st.integers(6, 20))
    def start(self, steps, pages, slots):
        self.steps = steps
        self.hybrid = create(pages=pages, max_bytes=16 * slots, keep_steps=steps, max_sequences=3)
        self.tokens: dict[int, list[int]] = {}
        self.pending: dict[int, list[tuple[int, int]]] = {}
        self.points: dict[int, tuple[object, list[int], list]] = {}

    def pick(self, data) -> int:
        return data.draw(st.sampled_from(sorted(self.tokens)))

    @hs.rule(seq_id=st.integers(0, 4))
    def add(self, seq_id):
        try:
            self.hybrid.add_sequence(seq_id)
        except (ValueError, RuntimeError):
            assert seq_id in self.tokens or len(self.tokens) == 3
        else:
            self.tokens[seq_id], self.pending[seq_id] = [], []

    def drop(self, seq_id):
        del self.tokens[seq_id], self.pending[seq_id]
        self.points.pop(seq_id, None)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data())
    def remove(self, data):
        seq_id = self.pick(data)
        self.hybrid.remove_sequence(seq_id)
        self.drop(seq_id)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data(), count=st.integers(1, 5), tree=st.booleans())
    def step(self, data, count, tree):
        seq_id = self.pick(data)
        pending = self.pending[seq_id]
        new = data.draw(st.lists(st.integers(1, 99), min_size=count, max_size=count))
        parents = [parent for parent, _ in pending]
        for node in range(len(pending), len(pending) + count):
            any_node = st.integers(-1, node - 1) if self.steps else st.just(node - 1)
            parents.append(data.draw(any_node))
        mask = kvctl.Mask.tree(parents) if tree or pending else None
        if mask is not None and not self.steps and not self.has_last_state(seq_id):
            with pytest.raises(ValueError, match="no state is kept after pending node"):
                run(self.hybrid, [seq_id], [new], steps=self.steps, mask=mask)
            return
        try:
            run(self.hybrid, [seq_id], [new], steps=self.steps, mask=mask)
        except kvctl.OutOfPagesError:
            return
        if mask is None:
            self.tokens[seq_id] += new
        else:
            pending += zip(parents[-count:], new, strict=True)

    def has_last_state(self, seq_id):
        """Whether a sequence can grow: without steps popn may have left the middle of a chunk."""
        try:
            length = self.hybrid.sequence_length(seq_id)
            self.hybrid.state.get_state(seq_id, 0, position=length)
        except IndexError:
            return False
        return True

    def land(self, seq_id, tokens, replay):
        assert replay == 0 or not self.steps
        self.tokens[seq_id] = tokens[: len(tokens) - replay]
        self.pending[seq_id] = []

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data())
    def commit(self, data):
        seq_id = self.pick(data)
        pending, path = self.pending[seq_id], []
        node = data.draw(st.integers(-1, len(pending) - 1))
        while node >= 0:
            path.insert(0, node)
            node = pending[node][0]
        try:
            (replay,) = self.hybrid.commit([seq_id], [path])
        except kvctl.OutOfPagesError:  # a page shared with a fork has to be copied
            return
        kept = [pending[node][1] for node in path]
        self.land(seq_id, self.tokens[seq_id] + kept, replay)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data(), n=st.integers(0, 7))
    def popn(self, data, n):
        seq_id = self.pick(data)
        left = len(self.pending[seq_id]) - n
        try:
            replay = self.hybrid.popn(seq_id, n)
        except ValueError:
            assert left < 0
            return
        if left >= 0:
            self.pending[seq_id] = self.pending[seq_id][:left]
        else:
            self.land(seq_id, self.tokens[seq_id][:left], replay)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data(), child=st.integers(0, 4))
    def fork(self, data, child):
        parent = self.pick(data)
        position = data.draw(st.integers(0, len(self.tokens[parent])))
        try:
            replay = self.hybrid.fork_sequence(parent, child, position)
        except (ValueError, RuntimeError):
            assert (child in self.tokens) == (child in self.hybrid.cache)
            assert (child in self.tokens) == (child in self.hybrid.state)
            return
        self.land(child, self.tokens[parent][:position], replay)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data())
    def checkpoint(self, data):
        seq_id = self.pick(data)
        saved = (list(self.tokens[seq_id]), list(self.pending[seq_id]))
        self.points[seq_id] = (self.hybrid.checkpoint(seq_id), *saved)

    @hs.precondition(lambda self: self.points)
    @hs.rule(data=st.data())
    def rollback(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.points)))
        point, tokens, pending = self.points[seq_id]
        self.hybrid.rollback(seq_id, point)
        self.tokens[seq_id], self.pending[seq_id] = list(tokens), list(pending)

    @hs.precondition(lambda self: self.tokens)
    @hs.rule(data=st.data())
    def abort(self, data):
        seq_id = self.pick(data)
        self.hybrid.abort([seq_id])
        self.pending[seq_id] = []

    @hs.invariant()
    def together(self):
        for seq_id, tokens in getattr(self, "tokens", {}).items():
            assert self.hybrid.pending_length(seq_id) == len(self.pending[seq_id])
            assert_holds(self.hybrid, seq_id, tokens)


Together.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestTogether = Together.TestCase
