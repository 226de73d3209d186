"""Logits that stay on their workers, which are processes: the texts are those of one worker."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl.distributed import ModelRunner
from kvctl.distributed.logits import SplitLogits
from tiny_model import compile_tiny_model

CHANGES = {"vocab_size": 16000, "num_hidden_layers": 1}  # two blocks of 4096 for each worker


@pytest.fixture(scope="module")
def models(gloo, tmp_path_factory):
    """One worker, and two that keep their logits."""
    folder = tmp_path_factory.mktemp("split")
    directories = [
        compile_tiny_model(folder / str(n), changes=CHANGES, tensor_parallel=n, hidden_layers=[])
        for n in (1, 2)
    ]
    one = kvctl.ModelRunner.load(directories[0])
    with ModelRunner.load(directories[1], workers=2, threads=1, join_logits=False) as two:
        yield one, two


@pytest.fixture(autouse=True)
def empty(models):
    """Both caches are empty."""
    for runner in models:
        runner.cache.clear()


def asked_for(monkeypatch):
    """Return a list that tells what is asked of logits."""
    calls = []
    for name in ("gather", "tokens"):
        function = getattr(SplitLogits, name)

        def told(self, *args, name=name, function=function):
            calls.append(name)
            return function(self, *args)

        monkeypatch.setattr(SplitLogits, name, told)
    return calls


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts(models, monkeypatch, temperature):
    """Drafts of lookups, sampled by seed; no row is gathered."""
    calls = asked_for(monkeypatch)
    prompts = [[1, 2, 3, 1, 2], [7, 8, 7, 8, 7]]
    texts = [
        [
            text.tokens
            for text in kvctl.generate(
                runner,
                prompts,
                max_new_tokens=12,
                sampling=kvctl.Sampling(temperature=temperature),
                seed=5,
                drafter=kvctl.draft.LookupDrafter(),
            )
        ]
        for runner in models
    ]
    assert texts[0] == texts[1]
    assert "tokens" in calls
    assert "gather" not in calls


def test_rows_are_joined_where_they_are_asked_for(models):
    one, two = models
    for runner in models:
        runner.cache.add_sequence(0)
    wanted = one.prefill([0], [[1, 2, 3]]).numpy()
    found = two.prefill([0], [[1, 2, 3]])
    assert isinstance(found, SplitLogits)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    np.testing.assert_allclose(np.from_dlpack(found), wanted, atol=1e-4)
    tree = kvctl.TokenTree([4, 5, 6], [-1, 0, 0])
    (logits, hidden), (rows, states) = (
        runner.verify([0], [tree], hidden=True) for runner in models
    )
    np.testing.assert_allclose(rows.numpy(), logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(states.numpy(), hidden.numpy(), atol=1e-4)
    options = {"rule": "target_only", "drawn": "deterministic", "root_positions": [3]}
    sampling = kvctl.Sampling(top_k=5)
    assert (
        kvctl.verify(rows, [tree], sampling=sampling, **options).tokens
        == kvctl.verify(logits, [tree], sampling=sampling, **options).tokens
    )


def test_rows_are_kept_as_long_as_they_are_held(models):
    _, two = models
    two.cache.add_sequence(0)
    first = two.prefill([0], [[1, 2, 3]])
    second = two.decode([0], [4])
    kept = two._session.first._kept
    assert len(kept) == 2
    before = first.numpy()
    del second
    two.decode([0], [5])
    np.testing.assert_array_equal(first.numpy(), before)
    del first
    two.decode([0], [6])
    assert not kept


def test_mistakes_leave_nothing(models):
    _, two = models
    two.cache.add_sequence(0)
    with pytest.raises(KeyError):
        two.prefill([3], [[1]])
    with pytest.raises(ValueError, match="vocabulary"):
        two.prefill([0], [[1, 16000]])
    assert not two._session.first._kept
    two.prefill([0], [[1, 2]])
