"""ModelRunner against a NumPy model that knows neither caches nor chunks."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

import kvctl
from loaded_runner import (
    PARENTS,
    PATHS,
    TOKENS,
    TOLERANCE,
    TREE_TOKENS,
    array,
    assert_same_state,
    load,
    state,
)
from tiny_model import compile_tiny_model


def test_prefill_and_decode_agree_with_the_reference(directory, reference):
    runner = load(directory, 3)
    rows = [array(runner.prefill([3], [TOKENS[:20]]))]
    rows += [array(runner.decode([3], [token])) for token in TOKENS[20:24]]
    np.testing.assert_allclose(
        np.concatenate(rows), reference.logits(TOKENS[:24])[19:], **TOLERANCE
    )
    assert runner.cache.sequence_length(3) == 24
    assert runner.vocab_size == 256


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_prefill_in_chunks(directory, reference, chunk):
    runner = load(directory, 0, prefill_chunk_size=chunk)
    assert runner.prefill_chunk_size == chunk
    logits = array(runner.prefill([0], [TOKENS[:33]]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:33])[-1:], **TOLERANCE)


@pytest.mark.parametrize("chunk", [5, 16, 64])
def test_ragged_batches_are_their_sequences_one_by_one(directory, chunk):
    prompts = [TOKENS[:17], TOKENS[20:21], TOKENS[30:62], TOKENS[5:15]]
    batched = load(directory, 5, 2, 9, 0, prefill_chunk_size=chunk)
    together = array(batched.prefill([5, 2, 9, 0], prompts))
    decoded = array(batched.decode([0, 5, 9, 2], [1, 2, 3, 4]))
    alone = load(directory, 0)
    for row, prompt, token, decoded_row in zip(
        range(4), prompts, [2, 4, 3, 1], [1, 3, 2, 0], strict=True
    ):
        alone.cache.remove_sequence(0)
        alone.cache.add_sequence(0)
        np.testing.assert_allclose(
            together[[row]], array(alone.prefill([0], [prompt])), **TOLERANCE
        )
        np.testing.assert_allclose(
            decoded[[decoded_row]], array(alone.decode([0], [token])), **TOLERANCE
        )


def test_verify_of_a_chain_is_decoding_its_tokens(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    logits = array(runner.verify([0], [kvctl.TokenTree.chain(TOKENS[10:18])]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:18])[10:], **TOLERANCE)
    assert runner.cache.pending_length(0) == 8

    runner.cache.commit([0], [range(5)])
    assert runner.cache.sequence_length(0) == 15
    after = array(runner.decode([0], [TOKENS[15]]))
    np.testing.assert_allclose(after, reference.logits(TOKENS[:16])[-1:], **TOLERANCE)


def test_verify_of_a_tree_gives_every_path(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    logits = array(runner.verify([0], [kvctl.TokenTree(TREE_TOKENS, PARENTS)]))
    for node, path in PATHS.items():
        expected = reference.logits(TOKENS[:10] + [TREE_TOKENS[i] for i in path])[-1]
        np.testing.assert_allclose(logits[node], expected, **TOLERANCE, err_msg=f"node {node}")

    runner.cache.commit([0], [PATHS[5]])
    after = array(runner.decode([0], [7]))
    kept = TOKENS[:10] + [TREE_TOKENS[i] for i in PATHS[5]] + [7]
    np.testing.assert_allclose(after, reference.logits(kept)[-1:], **TOLERANCE)


@pytest.mark.parametrize("chunk", [8, 64])
def test_verify_of_a_batch_of_trees(directory, reference, chunk):
    """At 8 tokens the batch takes three forwards, at 64 one."""
    runner = load(directory, 4, 1, 7, prefill_chunk_size=chunk)
    prompts = {4: TOKENS[:6], 1: TOKENS[6:26], 7: TOKENS[26:27]}
    runner.prefill(list(prompts), list(prompts.values()))
    trees = {
        7: kvctl.TokenTree(TREE_TOKENS, PARENTS),
        4: kvctl.TokenTree.chain([9, 8, 7]),
        1: kvctl.TokenTree([1, 2, 2, 3], [-1, 0, 0, 2]),
    }
    logits = array(runner.verify(list(trees), list(trees.values())))
    row = 0
    for seq_id, tree in trees.items():
        for node in range(len(tree)):
            path = []
            while node >= 0:
                path.insert(0, int(tree.tokens[node]))
                node = int(tree.parents[node])
            expected = reference.logits(prompts[seq_id] + path)[-1]
            np.testing.assert_allclose(logits[row], expected, **TOLERANCE)
            row += 1
    assert row == len(logits)
    runner.cache.commit([1, 7, 4], [[0, 2], [], [0, 1, 2]])
    after = array(runner.decode([4, 1, 7], [5, 5, 5]))
    for got, kept in zip(
        after, [prompts[4] + [9, 8, 7, 5], prompts[1] + [1, 2, 5], prompts[7] + [5]], strict=True
    ):
        np.testing.assert_allclose(got, reference.logits(kept)[-1], **TOLERANCE)


def test_nodes_that_share_a_row(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    # The second and third node are one token drawn twice; their children differ.
    tree = kvctl.TokenTree([1, 2, 2, 3, 4], [-1, 0, 0, 1, 2], rows=[0, 1, 1, 2, 3])
    logits = array(runner.verify([0], [tree]))
    assert logits.shape == (4, 256)
    for row, path in enumerate([[1], [1, 2], [1, 2, 3], [1, 2, 4]]):
        expected = reference.logits(TOKENS[:10] + path)[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)


def test_rows_without_a_node_need_forward(tiny_model):
    runner = load(tiny_model, 0)
    runner.prefill([0], [TOKENS[:10]])
    before = state(runner)
    with pytest.raises(ValueError, match="row"):
        runner.verify([0], [kvctl.TokenTree([1, 2], [-1, 0], rows=[0, 2])])
    assert_same_state(before, state(runner))


def test_forward_of_pending_tokens_without_a_mask(directory, reference):
    runner = load(directory, 0, 1)
    runner.prefill([0, 1], [TOKENS[:10], TOKENS[:5]])
    logits = array(runner.forward([1, 0], [TOKENS[5:8], TOKENS[10:12]], pending=True))
    expected = reference.logits(TOKENS[:12])
    np.testing.assert_allclose(logits, expected[[5, 6, 7, 10, 11]], **TOLERANCE)
    assert runner.cache.pending_length(0) == 2
    runner.cache.abort([0, 1])
    assert runner.cache.sequence_length(0) == 10
    logits = array(runner.forward([0], [TOKENS[10:12]]))
    np.testing.assert_allclose(logits, expected[[10, 11]], **TOLERANCE)
    assert runner.cache.pending_length(0) == 0


def test_forward_at_positions_of_ones_own(directory, reference):
    runner = load(directory, 0)
    logits = array(runner.forward([0], [TOKENS[:4]], positions=[[0, 1, 7, 9]]))
    expected = reference.logits(TOKENS[:4], positions=[0, 1, 7, 9])
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_forward_under_a_tree_mask_per_sequence(directory, reference):
    runner = load(directory, 0, 1)
    runner.prefill([0, 1], [TOKENS[:3], TOKENS[:5]])
    tree = kvctl.TokenTree(TREE_TOKENS, PARENTS)
    logits = array(runner.forward([0, 1], [TREE_TOKENS, TOKENS[5:7]], mask=[tree, None]))
    for node, path in PATHS.items():
        expected = reference.logits(TOKENS[:3] + [TREE_TOKENS[i] for i in path])[-1]
        np.testing.assert_allclose(logits[node], expected, **TOLERANCE)
    np.testing.assert_allclose(logits[7:], reference.logits(TOKENS[:7])[5:], **TOLERANCE)
    assert runner.cache.pending_length(0) == 7
    assert runner.cache.pending_length(1) == 0


def test_rows_that_belong_to_no_node(directory, reference):
    """A lookahead window beside the tree: two rows that see the context and each other's past."""
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:6]])
    tree = kvctl.TokenTree([1, 2], [-1, 0], rows=[0, 3])
    parents = [-1, 0, 1, 0]  # rows 1 and 2 are the window: a chain behind the root
    logits = array(runner.forward([0], [[1, 7, 8, 2]], mask=kvctl.Mask.tree(parents)))
    for row, path in enumerate([[1], [1, 7], [1, 7, 8], [1, 2]]):
        expected = reference.logits(TOKENS[:6] + path)[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)
    runner.cache.commit([0], [tree.rows])
    after = array(runner.decode([0], [9]))
    np.testing.assert_allclose(after, reference.logits([*TOKENS[:6], 1, 2, 9])[-1:], **TOLERANCE)


def test_forward_under_a_mask_of_ones_own(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:6]])
    among_new = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], bool)
    logits = array(runner.forward([0], [TOKENS[6:9]], mask=kvctl.Mask.dense(among_new)))
    visible = np.tri(9, dtype=bool)
    visible[6:, 6:] = among_new
    expected = reference.logits(TOKENS[:9], visible=visible)[6:]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_rollback_then_continue_is_a_fresh_run(directory):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:20]])
    checkpoint = runner.cache.checkpoint(0)
    fresh = array(runner.decode([0], [3]))
    runner.decode([0], [4])
    runner.cache.popn(0, 2)
    runner.verify([0], [kvctl.TokenTree(TREE_TOKENS, PARENTS)])
    runner.cache.abort([0])
    np.testing.assert_array_equal(array(runner.decode([0], [3])), fresh)
    runner.prefill([0], [TOKENS[40:60]])
    runner.cache.rollback(0, checkpoint)
    np.testing.assert_array_equal(array(runner.decode([0], [3])), fresh)


def test_forked_sequences_continue_apart(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:21]])
    runner.cache.fork_sequence(0, 1)
    logits = array(runner.decode([0, 1], [10, 20]))
    for row, token in enumerate([10, 20]):
        expected = reference.logits([*TOKENS[:21], token])[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)


def test_two_runners_at_once(directory, reference, tmp_path):
    """Parameters and caches of models with equal names stay apart."""
    other = load(compile_tiny_model(tmp_path / "other", seed=1), 0)
    runner = load(directory, 0)
    expected = reference.logits(TOKENS[:8])[-1:]
    different = array(other.prefill([0], [TOKENS[:8]]))
    np.testing.assert_allclose(array(runner.prefill([0], [TOKENS[:8]])), expected, **TOLERANCE)
    assert np.abs(different - expected).max() > 0.01


def test_anything_that_holds_integers_is_a_token_list(tiny_model):
    runner = load(tiny_model, 0, 1, 2)
    prompts = [
        TOKENS[:4],
        np.array(TOKENS[:4]),
        tvm_ffi.from_dlpack(np.array(TOKENS[:4], np.int32)),
    ]
    logits = array(runner.prefill([0, 1, 2], prompts))
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    decoded = array(runner.decode(np.array([0, 1]), np.array([5, 5], np.uint8)))
    np.testing.assert_array_equal(decoded[0], decoded[1])
