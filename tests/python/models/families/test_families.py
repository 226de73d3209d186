"""Every family against logits that transformers computed for a tiny model of it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from family_files import CASES, Family
from kvctl.models import compile_model

BOUND = 1e-4


def assert_close(found, wanted):
    """Relative to the largest logit: rounding of sums moves small ones as far as large ones."""
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < BOUND, error


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
    """Prompts in chunks, token by token past windows and the original context, and as a tree."""
    family = Family(case)
    directory = compile_model(family.write(tmp_path / "source"), tmp_path / "compiled")
    runner = kvctl.ModelRunner.load(directory, prefill_chunk_size=24)
    tokens, wanted = family.tokens, family.logits
    runner.cache.add_sequence(0)
    runner.cache.add_sequence(1)
    assert_close(runner.prefill([0], [tokens]).numpy()[0], wanted[-1])
    assert_close(runner.prefill([1], [tokens[:10]]).numpy()[0], wanted[9])
    for index in range(10, 40):
        assert_close(runner.decode([1], [tokens[index]]).numpy()[0], wanted[index])
    # A tree of the true path and a branch beside it: node 1 is the stranger.
    path = tokens[40:48]
    tree = kvctl.TokenTree([path[0], 5, *path[1:]], [-1, 0, 0, *range(2, 8)])
    rows = runner.verify([1], [tree]).numpy()
    assert_close(rows[[0, *range(2, 9)]], wanted[40:48])
    runner.cache.commit([1], [[0, *range(2, 9)]])
    rows = runner.verify([1], [kvctl.TokenTree.chain(tokens[48:])]).numpy()
    assert_close(rows, wanted[48:])
