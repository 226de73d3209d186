"""kvctl.ModelRunner on models with recurrent layers: it runs again by itself what has to be."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl.engine.compiled.replay import ReplayingCache
from recurrent_models import KINDS
from recurrent_vm import RecurrentVM

PROMPT = np.random.default_rng(2).integers(0, 64, 21).tolist()
LENGTH = len(PROMPT) + 30
modes = pytest.mark.parametrize("mode", ["snapshot", "replay", "steps not kept"])
both = pytest.mark.parametrize("kind", KINDS)


def load(recurrent_models, kind, mode, **options):
    directory = recurrent_models(kind, emit_steps=mode != "replay")
    options = {"prefill_chunk_size": 16, "page_size": 4, "max_history": 8, **options}
    return kvctl.ModelRunner.load(directory, keep_steps=mode != "steps not kept", **options)


def states(runner, seq_id):
    state = runner.cache.state
    return b"".join(
        np.from_dlpack(state.get_state(seq_id, layer, index)).tobytes()
        for layer in range(state.num_layers)
        for index in range(state.num_states)
    )


def argmax(logits):
    return np.from_dlpack(logits).argmax(-1)


def plain_greedy(runner, seq_id):
    """Tokens of greedy decoding, and the states after each."""
    runner.cache.add_sequence(seq_id)
    tokens, after = list(PROMPT), {}
    logits = runner.prefill([seq_id], [PROMPT])
    while len(tokens) < LENGTH + 6:
        after[len(tokens)] = states(runner, seq_id)
        tokens.append(int(argmax(logits)[0]))
        logits = runner.decode([seq_id], tokens[-1:])
    return tokens, after


@both
@modes
@pytest.mark.parametrize("way", ["commit", "popn"])
def test_speculative_greedy_equals_plain_greedy(recurrent_models, kind, mode, way):
    runner = load(recurrent_models, kind, mode)
    truth, after = plain_greedy(runner, 7)
    rng, cache, ids = np.random.default_rng(1), runner.cache, [1, 0]
    assert isinstance(cache, ReplayingCache)
    for seq_id in ids:
        cache.add_sequence(seq_id)
    first = argmax(runner.prefill(ids, [PROMPT, PROMPT]))
    tokens = {seq_id: [*PROMPT, int(one)] for seq_id, one in zip(ids, first, strict=True)}
    while min(map(len, tokens.values())) < LENGTH:
        trees = []
        for seq_id in ids:
            at, right = len(tokens[seq_id]), rng.integers(0, 4)
            wrong = (np.array(truth[at + right : at + 3], int) + 1) % 64
            chain = [tokens[seq_id][-1], *truth[at : at + right], *wrong]
            trees.append(kvctl.TokenTree.chain(chain))
        if way == "commit":
            logits = runner.verify(ids, trees)
        else:
            logits = runner.forward(ids, [tree.tokens for tree in trees])
        choices = np.split(argmax(logits), np.cumsum([len(tree) for tree in trees])[:-1])
        keep = []
        for seq_id, tree, choice in zip(ids, trees, choices, strict=True):
            n = 1
            while n < len(tree) and tree.tokens[n] == choice[n - 1]:
                n += 1
            tokens[seq_id] += [*tree.tokens[1:n].tolist(), int(choice[n - 1])]
            keep.append(n)
        if way == "commit":
            cache.commit(ids, [range(n) for n in keep])
        else:
            for seq_id, tree, n in zip(ids, trees, keep, strict=True):
                cache.popn(seq_id, len(tree) - n)
        for seq_id in ids:
            assert cache.sequence_length(seq_id) == len(tokens[seq_id]) - 1
            assert cache.pending_length(seq_id) == 0
            assert states(runner, seq_id) == after[len(tokens[seq_id]) - 1]
    for seq_id in ids:
        assert tokens[seq_id][:LENGTH] == truth[:LENGTH]
    assert (cache.replayed_tokens > 0) == (mode != "snapshot")


@both
def test_a_branch_is_run_again_where_its_states_were_not_kept(recurrent_models, kind):
    runner = load(recurrent_models, kind, "steps not kept")
    runner.cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    runner.verify([0], [kvctl.TokenTree([5, 6, 7, 8], [-1, 0, 0, 2])])
    assert runner.cache.pending_length(0) == 4
    runner.cache.commit([0], [[0, 2, 3]])
    assert runner.cache.replayed_tokens == 3
    runner.cache.add_sequence(1)
    runner.prefill([1], [[*PROMPT, 5, 7, 8]])
    assert states(runner, 0) == states(runner, 1)
    one, other = np.from_dlpack(runner.decode([0, 1], [9, 9]))
    assert one.tobytes() == other.tobytes()


@both
@pytest.mark.parametrize("path", [[0.6], [True], ["0"]])
def test_nodes_that_are_no_integers_are_refused(recurrent_models, kind, path):
    runner = load(recurrent_models, kind, "steps not kept")
    for seq_id in (0, 1):
        runner.cache.add_sequence(seq_id)
        runner.prefill([seq_id], [PROMPT])
        runner.verify([seq_id], [kvctl.TokenTree([5, 6], [-1, 0])])
    with pytest.raises(TypeError, match="kept nodes must be integers"):
        runner.cache.commit([0], [path])
    assert runner.cache.pending_length(0) == 2
    for seq_id in (0, 1):
        runner.cache.commit([seq_id], [[0]])
    assert states(runner, 0) == states(runner, 1)


@both
@pytest.mark.parametrize("named", [None, [0]], ids=["all", "named"])
def test_what_was_aborted_is_not_run_again(recurrent_models, kind, named):
    runner = load(recurrent_models, kind, "steps not kept")
    for seq_id, drafts in ((0, [[5, 6, 7, 8], [9, 10, 11, 12]]), (1, [[9, 10, 11, 12]])):
        runner.cache.add_sequence(seq_id)
        runner.prefill([seq_id], [PROMPT])
        for chain in drafts:
            runner.cache.abort(named)
            runner.verify([seq_id], [kvctl.TokenTree.chain(chain)])
        runner.cache.commit([seq_id], [[0, 1]])
    assert states(runner, 0) == states(runner, 1)


@both
@modes
def test_fork_popn_and_rollback_anywhere_near(recurrent_models, kind, mode):
    runner = load(recurrent_models, kind, mode)
    cache = runner.cache
    cache.add_sequence(0)
    runner.prefill([0], [PROMPT[:10]])
    point = cache.checkpoint(0)
    runner.forward([0], [PROMPT[10:17]])
    cache.fork_sequence(0, 1, 12)
    cache.popn(0, 3)
    lengths = {0: 14, 1: 12}
    for seq_id, length in lengths.items():
        assert cache.sequence_length(seq_id) == length
        cache.add_sequence(9)
        runner.prefill([9], [PROMPT[:length]])
        assert states(runner, seq_id) == states(runner, 9)
        cache.remove_sequence(9)
    cache.rollback(0, point)
    assert cache.sequence_length(0) == 10
    runner.verify([0], [kvctl.TokenTree.chain(PROMPT[10:14])])
    cache.popn(0, 1)
    assert cache.pending_length(0) == 3
    cache.commit([0], [[0, 1, 2]])
    runner.decode([0], PROMPT[13:14])
    cache.add_sequence(9)
    runner.prefill([9], [PROMPT[:14]])
    assert states(runner, 0) == states(runner, 9)
    cache.remove_sequence(9)
    with pytest.raises(ValueError, match="popn: n must be within"):
        cache.popn(0, 15)
    assert cache.sequence_length(0) == 14
    cache.popn(0, 9)  # further back than the kept states
    cache.add_sequence(9)
    runner.prefill([9], [PROMPT[:5]])
    assert states(runner, 0) == states(runner, 9)
    with pytest.raises(KeyError):
        cache.commit([5], [[]])
    cache.abort([0])
    cache.clear()
    assert 0 not in cache


@both
def test_what_cannot_run_again_leaves_everything_as_it_was(recurrent_models, kind, monkeypatch):
    runner = load(recurrent_models, kind, "replay")
    cache = runner.cache
    cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    before = states(runner, 0)
    runner.verify([0], [kvctl.TokenTree.chain([5, 6, 7])])

    def fails(seq_ids, tokens):
        raise kvctl.OutOfPagesError("no page is free")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_append", fails)
        with pytest.raises(kvctl.OutOfPagesError):
            cache.commit([0], [[0, 1]])
        assert cache.pending_length(0) == 3 and states(runner, 0) == before
        cache.commit([0], [[0, 1, 2]])
        with pytest.raises(kvctl.OutOfPagesError):
            cache.popn(0, 1)
        with pytest.raises(kvctl.OutOfPagesError):
            cache.fork_sequence(0, 1, len(PROMPT) + 2)
        assert 1 not in cache
    assert cache.sequence_length(0) == len(PROMPT) + 3
    cache.popn(0, 1)
    cache.add_sequence(2)
    runner.prefill([2], [[*PROMPT, 5, 6]])
    assert states(runner, 0) == states(runner, 2)


@both
def test_a_prompt_that_fails_in_the_middle_is_taken_back(recurrent_models, kind):
    runner = load(recurrent_models, kind, "snapshot", max_total_tokens=40)
    cache = runner.cache
    cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    before = states(runner, 0)
    if kind == "hybrid":
        with pytest.raises(kvctl.OutOfPagesError):
            runner.prefill([0], [PROMPT])
    with pytest.raises(ValueError, match="token 64"):
        runner.prefill([0], [[*PROMPT, 64]])
    with pytest.raises(KeyError):
        runner.prefill([0, 3], [[1, 2], [3]])
    assert cache.sequence_length(0) == len(PROMPT)
    assert states(runner, 0) == before


@both
def test_the_library_creates_its_state_by_itself_too(recurrent_models, kind):
    model = RecurrentVM(recurrent_models(kind, emit_steps=True))
    from tvm.runtime import ShapeTuple

    made = kvctl.RecurrentState.wrap(model.vm["create_rnn_state"](ShapeTuple([3]), ShapeTuple([9])))
    assert (made.max_history, made.num_layers, made.num_states) == (8, 2, 2)
    assert made.state_bytes == model.state.state_bytes
