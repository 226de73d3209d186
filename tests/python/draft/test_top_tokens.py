"""The most likely tokens of rows, against sorting them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from kvctl.draft.top_tokens import choices, top_tokens


@pytest.mark.parametrize("vocab", [1, 7, 64, 129, 1000, 5000])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_as_sorting_does(vocab, k):
    rng = np.random.default_rng(vocab)
    logits = rng.standard_normal((6, vocab)).astype(np.float32)
    logits[1] = np.sort(logits[1])  # the largest side by side, at the end
    k = min(k, vocab)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    assert np.array_equal(top_tokens(logits, k), expected)
    assert np.array_equal(top_tokens(tvm_ffi.from_dlpack(logits), k), expected)


def test_choices_are_by_node():
    assert choices([0, 3], np.eye(4)[[2, 1]]) == {0: 2, 3: 1}
