"""kvctl.ModelRunner on libraries with recurrent layers that MLC-LLM's flow compiled."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from recurrent_models import KINDS

RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (21, 5, 34)]
IDS = [4, 0, 7]
both = pytest.mark.parametrize("kind", KINDS)


def load(directory, **options):
    options = {"prefill_chunk_size": 16, "page_size": 4, "max_history": 8, **options}
    return kvctl.ModelRunner.load(directory, **options)


@pytest.fixture
def runner(mlc_recurrent, kind):
    return load(mlc_recurrent(kind))


@pytest.fixture
def ours(recurrent_models, kind):
    return load(recurrent_models(kind, emit_steps=True))


def add(runner, ids=IDS):
    for seq_id in ids:
        runner.cache.add_sequence(seq_id)


def array(logits):
    return np.from_dlpack(logits).copy()


def contents(runner, seq_id):
    """The length of a sequence, and the bytes of its states."""
    state = runner.cache.state
    return runner.cache.sequence_length(seq_id), [
        np.from_dlpack(state.get_state(seq_id, layer, index)).tobytes()
        for layer in range(state.num_layers)
        for index in range(state.num_states)
    ]


@both
def test_several_sequences_go_one_by_one_and_give_the_same(runner, ours):
    for one in (runner, ours):
        add(one)
    np.testing.assert_array_equal(
        array(runner.prefill(IDS, PROMPTS)), array(ours.prefill(IDS, PROMPTS))
    )
    chains = [
        kvctl.TokenTree.chain(tokens[:n]) for tokens, n in zip(PROMPTS, (4, 1, 3), strict=True)
    ]
    verified = array(runner.verify(IDS, chains))
    np.testing.assert_array_equal(verified, array(ours.verify(IDS, chains)))
    assert verified.shape == (8, 64)
    kept = [[0, 1], [0], []]
    for one in (runner, ours):
        one.cache.commit(IDS, kept)
    np.testing.assert_array_equal(
        array(runner.decode(IDS, [1, 2, 3])), array(ours.decode(IDS, [1, 2, 3]))
    )
    forward = [prompt[:3] for prompt in PROMPTS]
    np.testing.assert_array_equal(
        array(runner.forward(IDS, forward)), array(ours.forward(IDS, forward))
    )


@both
def test_one_of_several_that_fails_takes_all_back(runner):
    add(runner)
    runner.prefill(IDS, PROMPTS)
    before = [contents(runner, seq_id) for seq_id in IDS]
    with pytest.raises(KeyError):
        runner.prefill([*IDS, 99], [*PROMPTS, [1, 2]])
    with pytest.raises(KeyError):
        runner.verify([*IDS, 99], [kvctl.TokenTree.chain([1, 2])] * 4)
    with pytest.raises(ValueError, match="form a tree"):
        runner.verify(
            IDS, [kvctl.TokenTree.chain([1, 2])] * 2 + [kvctl.TokenTree([1, 2, 3], [-1, 0, 0])]
        )
    assert [contents(runner, seq_id) for seq_id in IDS] == before
    assert all(runner.cache.pending_length(seq_id) == 0 for seq_id in IDS)


@both
def test_a_tree_is_refused_before_the_model_runs(runner):
    add(runner, [0])
    tree = kvctl.TokenTree([5, 6, 7], [-1, 0, 0])
    with pytest.raises(ValueError, match=r"begin_forward: .*compile a model that computes a state"):
        runner.verify([0], [tree])  # the very first step, too
    runner.prefill([0], PROMPTS[:1])
    before = contents(runner, 0)
    with pytest.raises(ValueError, match=r"begin_forward: .*compile a model that computes a state"):
        runner.verify([0], [tree])
    assert contents(runner, 0) == before and runner.cache.pending_length(0) == 0
    runner.verify([0], [kvctl.TokenTree.chain([5, 6, 7])])
    runner.cache.commit([0], [[0, 1]])
    add(runner, [1])
    runner.prefill([1], [[*PROMPTS[0], 5, 6]])
    assert contents(runner, 0) == contents(runner, 1)


@both
def test_our_library_without_steps_refuses_trees_alike(recurrent_models, kind):
    runner = load(recurrent_models(kind, emit_steps=False))
    add(runner, [0])
    runner.prefill([0], PROMPTS[:1])
    before = contents(runner, 0)
    with pytest.raises(ValueError, match=r"begin_forward: .*form a tree"):
        runner.verify([0], [kvctl.TokenTree([5, 6, 7], [-1, 0, 0])])
    assert contents(runner, 0) == before
