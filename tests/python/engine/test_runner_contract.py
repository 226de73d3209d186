"""What a runner refuses, and what it takes apart into chunks: one meaning for every call."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from loaded_runner import TOKENS, TOLERANCE, array, assert_same_state, load, state
from plain_model import compile_plain_model


@pytest.mark.parametrize(
    "again",
    {
        "verify": lambda r, tree: r.verify([1, 0], [kvctl.TokenTree.chain([5]), tree]),
        "a tree as a mask": lambda r, tree: r.forward([0], [[70, 80]], mask=tree),
        "forward": lambda r, tree: r.forward([0], [[70, 80]]),
        "prefill": lambda r, tree: r.prefill([1, 0], [[5], TOKENS[:20]]),
        "decode": lambda r, tree: r.decode([0], [70]),
    }.items(),
    ids=lambda item: item[0],
)
def test_pending_nodes_are_committed_or_aborted_first(tiny_model, again):
    runner = load(tiny_model, 0, 1, prefill_chunk_size=16)
    runner.prefill([0, 1], [TOKENS[:10], TOKENS[:5]])
    runner.verify([0], [kvctl.TokenTree.chain([1, 2])])
    before = state(runner)
    with pytest.raises(ValueError, match="sequence 0 has 2 pending nodes; commit or abort them"):
        again[1](runner, kvctl.TokenTree.chain([70, 80]))
    assert_same_state(before, state(runner))


def test_a_pending_tree_grows_on_request(tiny_model, reference):
    runner = load(tiny_model, 0)
    runner.prefill([0], [TOKENS[:10]])
    runner.verify([0], [kvctl.TokenTree.chain([1, 2])])
    logits = array(runner.forward([0], [[70, 80]], mask=kvctl.Mask.tree([0, 2])))
    expected = reference.logits([*TOKENS[:10], 1, 70, 80])[-2:]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
    runner.cache.commit([0], [[0, 2, 3]])
    after = array(runner.decode([0], [9]))
    expected = reference.logits([*TOKENS[:10], 1, 70, 80, 9])[-1:]
    np.testing.assert_allclose(after, expected, **TOLERANCE)


@pytest.mark.parametrize("pending", [None, True])
@pytest.mark.parametrize("positions", [False, True])
def test_forwards_beyond_the_chunk_run_in_chunks(directory, reference, pending, positions):
    runner = load(directory, 0, 1, prefill_chunk_size=8)
    runner.prefill([0, 1], [TOKENS[:3], TOKENS[:2]])
    logits = array(
        runner.forward(
            [0, 1],
            [TOKENS[3:30], TOKENS[2:9]],
            pending=pending,
            positions=[range(3, 30), range(2, 9)] if positions else None,
        )
    )
    expected = reference.logits(TOKENS[:30])
    np.testing.assert_allclose(logits[:27], expected[3:], **TOLERANCE)
    np.testing.assert_allclose(logits[27:], expected[2:9], **TOLERANCE)
    assert runner.cache.pending_length(0) == (27 if pending else 0)
    if pending:
        runner.cache.commit([0, 1], [range(27), range(7)])
    np.testing.assert_allclose(
        array(runner.decode([0], TOKENS[30:31])), reference.logits(TOKENS[:31])[-1:], **TOLERANCE
    )


def test_a_mask_beyond_the_chunk_is_refused(tiny_model):
    runner = load(tiny_model, 0, prefill_chunk_size=8)
    before = state(runner)
    with pytest.raises(ValueError, match=r"9 new tokens, .* mask .* prefill chunk of 8"):
        runner.forward([0], [TOKENS[:9]], mask=kvctl.Mask.causal())
    assert_same_state(before, state(runner))


@pytest.mark.parametrize("chunk", [16, 64])
def test_the_context_window_is_the_end(tmp_path, chunk):
    model = compile_plain_model(tmp_path / "model", context_window_size=40)
    runner = load(model, 0, 1, prefill_chunk_size=chunk, max_total_tokens=256)
    with pytest.raises(
        ValueError, match=r"41 new tokens for sequence 0, which holds 0, .* window of 40 tokens"
    ):
        runner.prefill([1, 0], [[3], TOKENS[:41]])
    assert runner.cache.sequence_length(1) == 0
    runner.prefill([0], [TOKENS[:38]])
    with pytest.raises(ValueError, match="3 new tokens for sequence 0, which holds 38"):
        runner.verify([0], [kvctl.TokenTree.chain([1, 2, 3])])
    runner.verify([0], [kvctl.TokenTree([1, 2, 3], [-1, 0, 0])])  # two deep, whatever its width
    runner.cache.commit([0], [[0, 1]])
    with pytest.raises(ValueError, match="1 new tokens for sequence 0, which holds 40"):
        runner.decode([0], [1])
    assert runner.cache.sequence_length(0) == 40


@pytest.mark.parametrize("tokens", [[1, 2], np.array([1, 2])])
def test_tokens_without_their_list_are_shown_with_it(tiny_model, tokens):
    runner = load(tiny_model, 1)
    for call in (runner.forward, runner.prefill):
        with pytest.raises(ValueError, match=r"a list for each sequence: \[\[1, 2\]\], say"):
            call([1], tokens)
    assert runner.cache.sequence_length(1) == 0
