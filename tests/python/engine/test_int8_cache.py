"""A compiled model whose K and V are 8-bit integers: rows, trees and drafts change no bit."""

import numpy as np
import pytest

import kvctl
from kvctl import ModelRunner, TokenTree

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 3, 14, 15, 92]


@pytest.fixture(scope="module")
def runner(tiny_model):
    return ModelRunner.load(tiny_model, kv_dtype="int8")


def test_rows_alone_and_together(runner):
    assert runner.cache.dtype == "int8"
    cache = runner.cache
    for seq_id in (0, 1):
        cache.add_sequence(seq_id)
        runner.prefill([seq_id], [PROMPT])
    together = np.from_dlpack(runner.verify([0], [TokenTree.chain([5, 6, 7, 8])])).copy()
    for row, token in zip(together, (5, 6, 7, 8), strict=True):
        np.testing.assert_array_equal(np.from_dlpack(runner.decode([1], [token]))[0], row)
    for seq_id in (0, 1):
        cache.remove_sequence(seq_id)


@pytest.mark.parametrize("branches", [False, True])
def test_drafts_change_no_token(runner, branches):
    plain = kvctl.generate(runner, PROMPT, max_new_tokens=48)
    drafter = kvctl.draft.LookupDrafter(branches=branches)
    drafted = kvctl.generate(runner, PROMPT, drafter=drafter, max_new_tokens=48)
    assert drafted.tokens == plain.tokens


def test_logits_are_near_those_of_float32(runner, tiny_model):
    exact = ModelRunner.load(tiny_model, kv_dtype="float32")
    rows = []
    for one in (runner, exact):
        one.cache.add_sequence(0)
        rows.append(np.from_dlpack(one.forward([0], [PROMPT])).copy())
        one.cache.remove_sequence(0)
    error = np.abs(rows[0] - rows[1]).max()
    assert 0 < error < 0.05 * rows[1].std()
