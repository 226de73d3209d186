"""Any sequence of operations, any mixture of sequences: the cache does what the model says."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache_trial import Setup, Trial

SEQUENCES = st.integers(0, 5)
NAMES = st.integers(0, 3)
LENGTHS = st.integers(1, 9)
# Parents as wishes: each is folded into what is possible where it is applied.
WISHES = st.lists(st.integers(-1, 30), min_size=1, max_size=9)
PART = st.tuples(SEQUENCES, st.one_of(LENGTHS, WISHES))
FINISH = st.sampled_from(["end", "end", "end", "end", "abort", "late"])


class CacheMachine(RuleBasedStateMachine):
    """Rules draw wishes; what they mean is decided by the state, and the model judges the rest."""

    setup_ = Setup()

    @initialize()
    def create(self) -> None:
        self.trial = Trial(self.setup_)

    @rule(seq_id=SEQUENCES)
    def add(self, seq_id: int) -> None:
        self.trial.apply(("add", seq_id))

    @rule(seq_id=SEQUENCES)
    def remove(self, seq_id: int) -> None:
        self.trial.apply(("remove", seq_id))

    @rule(parent=SEQUENCES, child=SEQUENCES, position=st.integers(-2, 40))
    def fork(self, parent: int, child: int, position: int) -> None:
        self.trial.apply(("fork", parent, child, position))

    @rule(seq_id=SEQUENCES, n=st.integers(-1, 12))
    def popn(self, seq_id: int, n: int) -> None:
        self.trial.apply(("popn", seq_id, n))

    @rule(
        parts=st.lists(PART, min_size=1, max_size=4, unique_by=lambda part: part[0]),
        pending=st.sampled_from([None, None, True]),
        data=st.integers(0, 4000),
        finish=FINISH,
        shift=st.sampled_from([0] * 15 + [-1, 3]),
    )
    def step(
        self, parts: list[Any], pending: bool | None, data: int, finish: str, shift: int
    ) -> None:
        model = self.trial.model
        known = [(seq_id, spec) for seq_id, spec in parts if seq_id in model.sequences]
        resolved = []
        for seq_id, spec in known or parts:
            if isinstance(spec, list):
                tokens = model.sequences.get(seq_id)
                old = len(tokens.pending) if tokens else 0
                spec = tuple((wish + 1) % (old + index + 1) - 1 for index, wish in enumerate(spec))
            resolved.append((seq_id, spec))
        self.trial.apply(("step", tuple(resolved), pending, data, finish, shift))

    @rule(
        seq_ids=st.lists(SEQUENCES, min_size=1, max_size=4, unique=True),
        leaves=st.lists(st.integers(-1, 30), min_size=4, max_size=4),
    )
    def commit_paths(self, seq_ids: list[int], leaves: list[int]) -> None:
        parts: list[Any] = []
        for seq_id, leaf in zip(seq_ids, leaves, strict=False):
            tokens = self.trial.model.sequences.get(seq_id)
            if tokens is None or not tokens.pending or leaf < 0:
                parts.append((seq_id, ()))
            else:
                parts.append((seq_id, tuple(tokens.ancestors(leaf % len(tokens.pending)))))
        self.trial.apply(("commit", tuple(parts)))

    @rule(seq_id=SEQUENCES, kept=st.lists(st.integers(-1, 8), max_size=4))
    def commit_anything(self, seq_id: int, kept: list[int]) -> None:
        self.trial.apply(("commit", ((seq_id, tuple(kept)),)))

    @rule(seq_ids=st.one_of(st.none(), st.lists(SEQUENCES, max_size=2, unique=True)))
    def abort(self, seq_ids: list[int] | None) -> None:
        self.trial.apply(("abort", None if seq_ids is None else tuple(seq_ids)))

    @rule(seq_id=SEQUENCES, name=NAMES)
    def checkpoint(self, seq_id: int, name: int) -> None:
        self.trial.apply(("checkpoint", seq_id, name))

    @rule(seq_id=SEQUENCES, name=NAMES)
    def rollback(self, seq_id: int, name: int) -> None:
        self.trial.apply(("rollback", seq_id, name))

    @rule(
        seq_id=SEQUENCES,
        dropped=st.one_of(
            st.sets(st.integers(0, 40), max_size=12),
            st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda run: set(range(*run))),
        ),
        rerotate=st.booleans(),
    )
    def evict(self, seq_id: int, dropped: set[int], rerotate: bool) -> None:
        tokens = self.trial.model.sequences.get(seq_id)
        length = len(tokens.committed) if tokens else 1
        kept = tuple(i for i in range(length) if i not in dropped)
        self.trial.apply(("evict", seq_id, kept, rerotate))

    @rule(
        seq_id=SEQUENCES,
        size=st.integers(0, 12),
        sinks=st.sampled_from([0, 0, 1, 5]),
        horizon=st.sampled_from([0, 2, 8]),
        renumber=st.booleans(),
    )
    def window(self, seq_id: int, size: int, sinks: int, horizon: int, renumber: bool) -> None:
        self.trial.apply(("window", seq_id, size, sinks, horizon, renumber))

    @rule(seq_id=SEQUENCES, name=NAMES)
    def save(self, seq_id: int, name: int) -> None:
        self.trial.apply(("save", seq_id, name))

    @rule(seq_id=SEQUENCES, name=NAMES)
    def load(self, seq_id: int, name: int) -> None:
        self.trial.apply(("load", seq_id, name))

    @rule(page_size=st.sampled_from([1, 3, 4, 16]))
    def move(self, page_size: int) -> None:
        self.trial.apply(("move", page_size))

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "trial"):
            self.trial.check_all()

    def teardown(self) -> None:
        if hasattr(self, "trial"):
            self.trial.drain()


EXAMPLES = int(os.environ.get("KVCTL_STATE_MACHINE_EXAMPLES", "25"))


@pytest.mark.parametrize(
    "setup",
    [
        Setup(),
        Setup(page_size=1, num_pages=48),
        Setup(page_size=16, num_pages=9),
        Setup(dtype="float16"),
        Setup(dtype="int8"),
        Setup(dtype="int8", rope=True, layer_windows=(0, 5)),
        Setup(rope=True, layer_windows=(3, 0)),
        Setup(rope=True, rope_inline=True),
        Setup(rope=True, rope_library=True),
        Setup(num_qo_heads=3, num_kv_heads=3, num_layers=1, page_size=5),
    ],
    ids=[
        "small",
        "pages-of-one",
        "pages-of-sixteen",
        "float16",
        "int8",
        "int8-rope",
        "rope-layer-windows",
        "inline",
        "rope-of-a-library",
        "mha-odd-pages",
    ],
)
def test_any_sequence_of_operations(setup: Setup) -> None:
    machine = type("Machine", (CacheMachine,), {"setup_": setup})
    machine.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=40,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase("runTest").runTest()
