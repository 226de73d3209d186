"""Published heads say what a torch reading of their papers says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from head_checkpoint import write_head
from head_files import CASES, TOKENS
from kvctl import Mask

OUTPUTS = Path(__file__).parent / "outputs"
EAGLES = [case for case in CASES if case != "medusa"]


@pytest.mark.parametrize("chunk", [21, 4], ids=["at once", "in chunks"])
@pytest.mark.parametrize("case", EAGLES)
def test_a_text_and_a_tree_behind_it(compiled, case, chunk):
    head, expected = compiled(case), np.load(OUTPUTS / f"{case}.npz")
    tokens, parents = expected["tokens"].tolist(), expected["parents"].tolist()
    count = len(expected["hidden"])
    features = head.features(expected["hidden"])
    np.testing.assert_allclose(features, expected["features"], atol=2e-5)
    head.cache.add_sequence(0)
    after = np.concatenate(
        [
            head.forward([0], [tokens[i : min(i + chunk, count)]], features[i : i + chunk])
            for i in range(0, count, chunk)
        ]
    )
    for first, last in ((0, 2), (2, 5), (5, 6)):  # level by level
        rows = [count + parent if parent >= 0 else count - 1 for parent in parents[first:last]]
        mask = [Mask.tree(parents[first:last])]
        new = head.forward([0], [tokens[count + first : count + last]], after[rows], mask=mask)
        after = np.concatenate([after, new])
    np.testing.assert_allclose(after, expected["after"], atol=1e-4)
    np.testing.assert_allclose(head.logits(after), expected["logits"], atol=2e-4)


def test_medusa(compiled):
    expected = np.load(OUTPUTS / "medusa.npz")
    logits = compiled("medusa").logits(expected["hidden"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.02), ("int8", 0.04), ("int4", 0.2)])
@pytest.mark.parametrize("case", ["eagle3", "medusa"])
def test_weights_of_fewer_bits(tmp_path, target, case, dtype, error):
    from kvctl.heads import load
    from kvctl.heads.compile import compile_head

    files = write_head(tmp_path / "head", case)
    head = load(compile_head(files, tmp_path / "out", target_model=target, dtype=dtype))
    expected = np.load(OUTPUTS / f"{case}.npz")
    if case == "medusa":
        rows = expected["logits"], head.logits(expected["hidden"])
    else:
        head.cache.add_sequence(0)
        features = head.features(expected["hidden"])
        rows = expected["features"], features
        tokens = expected["tokens"].tolist()[: len(features)]
        assert np.isfinite(head.logits(head.forward([0], [tokens], features))).all()
    difference = np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[0])
    assert 1e-4 < difference < error


def test_layers_and_tokens_are_counted_as_published(compiled):
    assert compiled("eagle").hidden_layers == (7,)
    assert compiled("eagle").vocabulary is None
    assert compiled("eagle3").hidden_layers == (1, 3, 4)  # what enters layers 2, 4 and 5
    assert compiled("eagle3_speculators").hidden_layers == (1, 4, 6)
    assert compiled("eagle3").vocabulary.token_ids.tolist() == TOKENS.tolist()


@pytest.mark.parametrize("case", ["eagle3", "medusa"])
def test_an_output_layer_that_is_the_targets(tmp_path, target, case):
    """A head trained under the target's own layer leaves it out, and reads the rows it drafts."""
    from kvctl.heads.checkpoint import HeadCheckpoint

    eagle = case == "eagle3"
    own = ["lm_head.weight"] if eagle else ["0.2.weight", "1.2.weight"]
    outputs = ["lm_head.weight"] if eagle else ["lm_heads.0.weight", "lm_heads.1.weight"]
    head = write_head(tmp_path / "head", case, tensors=dict.fromkeys(own))
    read = HeadCheckpoint.open(head, target)
    rows = target.tensor("lm_head.weight")
    for name in outputs:
        assert read.shape(name) == (rows[TOKENS] if eagle else rows).shape
        np.testing.assert_array_equal(read.tensor(name), rows[TOKENS] if eagle else rows)
    whole = HeadCheckpoint.open(write_head(tmp_path / "whole", case), target)
    assert read.config == whole.config
