"""A model drafts for itself through less of it: the text is what all of it says."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from drafters import Verified
from fake_runner import FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import SelfDrafter
from tiny_model import compile_tiny_model

VIEWS = {
    "window": {"window": 6, "sinks": 2, "length": 4},
    "window, tree": {"window": 6, "branching": (2, 2), "length": 2},
    "window, drawn": {"window": 6, "length": 3, "how": "without_replacement"},
    "exit": {"layers": 1, "length": 4},
    "exit and window": {"layers": 1, "window": 6, "branching": 2, "beam": 2, "length": 3},
}


class VerifiedSelf(Verified, SelfDrafter):
    pass


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "exits"
    return kvctl.ModelRunner.load(compile_tiny_model(directory, exit_layers=[1]), max_sequences=4)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7, top_k=12)])
def test_texts_are_plain(runner, view, sampling):
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 256, n).tolist() for n in (5, 40, 17, 1, 9)]
    options = {"sampling": sampling, "seed": [4, 5, 6, 7, 8], "max_new_tokens": [20, 9, 30, 25, 2]}
    expected = [text.tokens for text in generate(runner, prompts, **options)]
    free = runner.cache.num_available_tokens
    got = generate(runner, prompts, drafter=VerifiedSelf(runner, **VIEWS[view]), **options)
    assert [text.tokens for text in got] == expected
    assert sum(text.statistics.speculative_rounds for text in got) > 0
    assert runner.cache.num_available_tokens == free


def test_what_is_drafted_is_what_the_view_says(runner):
    """A window that holds the whole text leaves nothing out, so that all is accepted."""
    whole = SelfDrafter(runner, window=400, length=4)
    text = generate(runner, [1, 2, 3], drafter=whole, max_new_tokens=26)
    assert text.statistics.mean_acceptance_length == 5.0
    narrow = SelfDrafter(runner, window=2, sinks=0, length=4)
    less = generate(runner, [1, 2, 3], drafter=narrow, max_new_tokens=26)
    assert less.tokens == text.tokens
    assert less.statistics.mean_acceptance_length < 4.0


def test_a_page_selector_is_in_force_while_drafting_only(runner):
    calls = []

    def select(layer, q):
        calls.append(layer)
        return [[0]]  # the first page and, always, the new tokens

    prompt = np.random.default_rng(1).integers(0, 256, 60).tolist()
    expected = generate(runner, prompt, max_new_tokens=20).tokens
    drafter = SelfDrafter(runner, select=select, length=2)
    text = generate(runner, prompt, drafter=drafter, max_new_tokens=20)
    assert text.tokens == expected and calls
    seen = len(calls)
    generate(runner, prompt, max_new_tokens=2)
    assert len(calls) == seen


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "must leave something out: give window, layers or select"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 4, "sinks": -1}, ValueError, "sinks must be at least 0, got -1"),
        ({"layers": 1}, NotImplementedError, "layers=1 needs a runner that runs part"),
    ],
)
def test_what_cannot_be_is_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        SelfDrafter(FakeRunner(), **options)
