"""The examples do what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import kvctl

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = [5, 17, 200, 31, 5, 17, 8, 99, 120, 31, 5, 17, 200, 42, 7, 64, 3, 3, 90, 11]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runner(tiny_model):
    return kvctl.ModelRunner.load(tiny_model)


def test_prefix_lm(runner):
    masks = example("masks")
    logits = masks.prefix_lm(runner, PROMPT[:4], PROMPT[4:8])
    sees = np.tri(8, dtype=bool)
    sees[:, :4] = True
    assert np.allclose(logits, masks.forward(runner, PROMPT[:8], kvctl.Mask.full(sees)), atol=1e-4)
    # Without the prefix's mask its first token knows nothing of the others.
    assert not np.allclose(logits[0], masks.forward(runner, PROMPT[:8])[0], atol=1e-3)


def test_packed_documents_are_as_they_are_alone(runner):
    masks = example("masks")
    documents = [PROMPT[:7], PROMPT[3:4], PROMPT[9:]]
    for document, logits in zip(documents, masks.pack_documents(runner, documents), strict=True):
        assert np.allclose(logits, masks.forward(runner, document), atol=1e-4)


def test_streaming_view_is_plain_decoding_until_it_forgets(runner):
    streaming_llm = example("masks").streaming_llm
    plain = kvctl.generate(runner, PROMPT, max_new_tokens=30).tokens
    assert streaming_llm(runner, PROMPT, 30, window=64, sinks=0) == plain
    assert streaming_llm(runner, PROMPT, 30, window=2, sinks=1) != plain


def test_branches_are_as_they_are_alone(runner):
    masks = example("masks")
    continuations = [[4, 9, 4], [7], [4, 8]]
    together = masks.score_continuations(runner, PROMPT, continuations)
    for continuation, logits in zip(continuations, together, strict=True):
        alone = masks.forward(runner, continuation, past=PROMPT)
        assert np.allclose(logits, alone, atol=1e-4)


def test_hidden_span_is_hidden_from_the_last_token_only(runner):
    masks = example("masks")
    logits = masks.hide_span(runner, PROMPT, [1, 2, 3], 4, 11)
    plain = masks.forward(runner, [1, 2, 3], past=PROMPT)
    assert np.allclose(logits[:2], plain[:2], atol=1e-4)
    assert not np.allclose(logits[2], plain[2], atol=1e-3)


# Speculation on random weights shows little; the demo model shows whether anything is accepted.


@pytest.fixture(scope="module")
def demo(smollm2):
    from kvctl.text import ModelText

    prompt = (EXAMPLES / "prompts" / "copy_list.txt").read_text()
    return kvctl.ModelRunner.load(smollm2), ModelText.load(smollm2).encode(prompt)


@pytest.mark.parametrize(
    "name, function", [("self_speculation", "self_speculate"), ("lookahead", "lookahead_decode")]
)
def test_speculation_gives_the_greedy_text(demo, name, function):
    runner, prompt = demo
    tokens, rate = getattr(example(name), function)(runner, prompt, 40)
    assert tokens == kvctl.generate(runner, prompt, max_new_tokens=40).tokens
    assert rate > 1
    assert runner.cache.empty


@pytest.mark.parametrize(
    "name, function", [("self_speculation", "self_speculate"), ("lookahead", "lookahead_decode")]
)
def test_speculation_on_random_weights_gives_the_greedy_text(runner, name, function):
    tokens, rate = getattr(example(name), function)(runner, PROMPT, 40)
    assert tokens == kvctl.generate(runner, PROMPT, max_new_tokens=40).tokens
    assert rate >= 1
