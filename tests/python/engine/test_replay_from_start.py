"""Going back further than the kept states: the runner runs the tokens again from the start."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from recurrent_models import KINDS

TEXT = np.random.default_rng(6).integers(0, 64, 150).tolist()
SPARE = 90
both = pytest.mark.parametrize("kind", KINDS)
libraries = pytest.mark.parametrize("library", ["steps", "final", "mlc"])


@pytest.fixture
def load(recurrent_models, mlc_recurrent):
    def load(kind, library="final", **options):
        if library == "mlc":
            directory = mlc_recurrent(kind)
        else:
            directory = recurrent_models(kind, emit_steps=library == "steps")
        options = {
            "prefill_chunk_size": 16,
            "page_size": 4,
            "max_history": 4,
            "max_sequences": 6,
            **options,
        }
        return kvctl.ModelRunner.load(directory, max_total_tokens=2048, **options)

    return load


def start(runner, seq_id, tokens):
    runner.cache.add_sequence(seq_id)
    return runner.prefill([seq_id], [tokens])


def next_logits(runner, seq_id):
    """Logits after one more token, which is taken back."""
    point = runner.cache.checkpoint(seq_id)
    logits = np.from_dlpack(runner.decode([seq_id], [7])).copy()
    runner.cache.rollback(seq_id, point)
    return logits


def assert_holds(runner, seq_id, tokens):
    assert runner.cache.sequence_length(seq_id) == len(tokens)
    assert runner.cache.pending_length(seq_id) == 0
    runner.cache.add_sequence(SPARE)
    if tokens:
        runner.prefill([SPARE], [tokens])
    truth = next_logits(runner, SPARE)
    runner.cache.remove_sequence(SPARE)
    np.testing.assert_allclose(next_logits(runner, seq_id), truth, atol=1e-5)


@both
@libraries
def test_popn_and_fork_of_a_long_text(load, kind, library):
    runner = load(kind, library)
    cache = runner.cache
    start(runner, 0, TEXT)
    for n in (100, 30):
        cache.fork_sequence(0, 1, n)
        assert_holds(runner, 1, TEXT[:n])
        cache.remove_sequence(1)
    assert_holds(runner, 0, TEXT)
    cache.popn(0, 110)
    assert_holds(runner, 0, TEXT[:40])
    cache.popn(0, 40)
    assert_holds(runner, 0, [])


@both
@libraries
def test_forks_of_forks(load, kind, library):
    runner = load(kind, library)
    cache = runner.cache
    start(runner, 0, TEXT[:60])
    cache.fork_sequence(0, 1, 50)
    runner.prefill([1], [TEXT[100:110]])
    cache.fork_sequence(1, 2, 55)
    cache.fork_sequence(2, 8, 20)
    assert_holds(runner, 2, TEXT[:50] + TEXT[100:105])
    cache.remove_sequence(2)
    assert_holds(runner, 8, TEXT[:20])
    cache.popn(1, 25)
    cache.remove_sequence(8)
    assert_holds(runner, 1, TEXT[:35])
    assert_holds(runner, 0, TEXT[:60])


@both
def test_after_popn_drafts_and_checkpoints_go_on(load, kind):
    runner = load(kind)
    cache = runner.cache
    start(runner, 0, TEXT[:70])
    runner.verify([0], [kvctl.TokenTree.chain(TEXT[:4])])
    point = cache.checkpoint(0)
    cache.popn(0, 44)  # the pending ones, and 40 more
    assert_holds(runner, 0, TEXT[:30])
    runner.verify([0], [kvctl.TokenTree.chain(TEXT[30:34])])
    cache.commit([0], [[0, 1]])
    assert_holds(runner, 0, TEXT[:32])
    cache.rollback(0, point)
    cache.commit([0], [[0, 1, 2]])
    assert_holds(runner, 0, TEXT[:70] + TEXT[:3])


@both
def test_what_cannot_run_again_changes_nothing(load, kind, monkeypatch):
    runner = load(kind)
    cache = runner.cache
    start(runner, 0, TEXT[:70])

    def fails(seq_ids, tokens):
        raise kvctl.OutOfPagesError("no page is free")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_append", fails)
        with pytest.raises(kvctl.OutOfPagesError):
            cache.popn(0, 50)
        with pytest.raises(kvctl.OutOfPagesError):
            cache.fork_sequence(0, 1, 20)
    assert 1 not in cache
    assert_holds(runner, 0, TEXT[:70])
    with pytest.raises(ValueError, match="already"):
        cache.fork_sequence(0, 0, 20)
    with pytest.raises(KeyError):
        cache.fork_sequence(5, 1, 20)
    with pytest.raises(KeyError):
        cache.popn(5, 1)
    with pytest.raises(ValueError, match="n must be within"):
        cache.popn(0, 71)
    with pytest.raises(ValueError, match="n must be within"):
        cache.popn(0, -1)
    with pytest.raises(IndexError):
        cache.fork_sequence(0, 1, 71)


@pytest.mark.parametrize("how", ["mask", "positions", "pending"])
def test_tokens_under_a_mask_or_at_positions_of_their_own_do_not_run_again(load, how):
    runner = load("hybrid")
    cache = runner.cache
    start(runner, 0, TEXT[:20])
    mask = kvctl.Mask.window(4)
    if how == "mask":
        runner.forward([0], [TEXT[20:30]], mask=mask)
    elif how == "positions":
        runner.forward([0], [TEXT[20:30]], positions=[range(30, 40)])
    else:
        runner.forward([0], [TEXT[20:30]], mask=mask, pending=True)
        cache.commit([0], [range(10)])
    runner.prefill([0], [TEXT[30:60]])
    length = cache.sequence_length(0)
    before = next_logits(runner, 0)
    with pytest.raises(ValueError, match=r"the first 30 cannot: .*go back to a checkpoint"):
        cache.popn(0, 25)
    with pytest.raises(ValueError, match="the first 30 cannot"):
        cache.fork_sequence(0, 1, 45)
    with pytest.raises(ValueError, match="the first 22 cannot"):
        cache.popn(0, 38)
    assert 1 not in cache and cache.sequence_length(0) == length
    np.testing.assert_array_equal(next_logits(runner, 0), before)
    cache.popn(0, 60)  # to the start: nothing has to run again
    assert_holds(runner, 0, [])
    start(runner, 1, TEXT[:20])
    runner.forward([1], [TEXT[20:30]], mask=kvctl.Mask.causal())
    runner.prefill([1], [TEXT[30:60]])
    cache.popn(1, 30)
    assert_holds(runner, 1, TEXT[:30])
