"""Batches on compiled models: the same bytes as alone, on every kind of cache."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from kvctl import ModelRunner, Sampling, generate
from kvctl.draft import LookupDrafter
from kvctl.engine.stats import Statistics
from plain_model import compile_plain_model
from random_drafter import RandomDrafter
from tiny_model import compile_tiny_model

RNG = np.random.default_rng(7)
PROMPTS = [RNG.integers(0, 60, n).tolist() for n in (3, 21, 9, 40, 1, 17, 30)]
SAMPLINGS = [None, Sampling(temperature=1.0), Sampling(temperature=0.7, repetition_penalty=1.1)]


def check_batch(load, *, total, drafters, prompts=PROMPTS, length=40):
    """Compare a batch in a small cache with each text alone in a large one."""
    roomy = load(max_total_tokens=1024, max_sequences=1)
    asked = {"max_new_tokens": length, "log_probs": True}
    each = [SAMPLINGS[i % len(SAMPLINGS)] for i in range(len(prompts))]
    expected = [
        generate(roomy, p, sampling=each[i], seed=5, request_id=i, **asked)
        for i, p in enumerate(prompts)
    ]
    replayed = 0
    for make in drafters:
        runner = load(max_total_tokens=total, max_sequences=5)
        drafter = make({i: one.tokens for i, one in enumerate(expected)})
        found = generate(runner, prompts, sampling=each, seed=5, drafter=drafter, **asked)
        for one, two in zip(expected, found, strict=True):
            assert two.tokens == one.tokens and two.finish_reason == one.finish_reason
            assert two.log_probs == one.log_probs  # bit for bit
        assert not any(i in runner.cache for i in range(len(prompts)))
        assert (
            runner.cache.num_available_tokens
            == load(max_total_tokens=total, max_sequences=5).cache.num_available_tokens
        )
        replayed += Statistics.merge(one.statistics for one in found).replayed_tokens
    return replayed


DRAFTERS = [
    lambda answers: None,
    lambda answers: LookupDrafter(length=4),
    lambda answers: RandomDrafter(answers=answers),
]


def test_on_every_kind_of_library(directory):
    def load(**options):
        return ModelRunner.load(directory, prefill_chunk_size=16, page_size=4, **options)

    assert check_batch(load, total=160, drafters=DRAFTERS) > 0


def test_with_a_sliding_window(tmp_path):
    directory = compile_plain_model(
        tmp_path / "model", context_window_size=-1, sliding_window_size=20, attention_sink_size=4
    )

    def load(**options):
        return ModelRunner.load(directory, prefill_chunk_size=16, page_size=4, **options)

    check_batch(load, total=120, drafters=DRAFTERS)


@pytest.mark.parametrize("kind", ["delta", "hybrid"])
def test_with_recurrent_layers(recurrent_models, kind):
    directory = recurrent_models(kind, emit_steps=True)

    def load(**options):
        return ModelRunner.load(directory, prefill_chunk_size=16, page_size=4, **options)

    chains = [DRAFTERS[0], lambda answers: LookupDrafter(length=3, branches=False)]
    check_batch(load, total=256, drafters=chains)


def test_seeds_of_their_own(tiny_model):
    """One call of kvctl.verify for each seed, on rows of the same logits."""
    runner = ModelRunner.load(tiny_model, max_sequences=7)
    sampling, seeds = Sampling(temperature=1.0), [1, 1, 2, 3, 3, 3, 1]
    options = {"max_new_tokens": 20, "sampling": sampling, "log_probs": True}
    drafter = LookupDrafter(length=3)
    found = generate(runner, PROMPTS, seed=seeds, request_id=[4] * 7, drafter=drafter, **options)
    for prompt, seed, one in zip(PROMPTS, seeds, found, strict=True):
        alone = generate(runner, prompt, seed=seed, request_id=4, **options)
        assert one.tokens == alone.tokens and one.log_probs == alone.log_probs


def test_log_probs_are_those_of_the_processed_distribution(tiny_model):
    runner = ModelRunner.load(tiny_model)
    sampling = Sampling(temperature=0.8, top_k=20, frequency_penalty=0.3, logit_bias={7: 1.5})
    found = generate(
        runner, PROMPTS[:3], max_new_tokens=15, sampling=sampling, seed=2, log_probs=True
    )
    for prompt, one in zip(PROMPTS, found, strict=False):
        runner.cache.add_sequence(0)
        text = list(prompt)
        logits = runner.prefill([0], [prompt])
        for token, value in zip(one.tokens, one.log_probs, strict=True):
            row = np.from_dlpack(logits)[0].astype(np.float64)
            row = row - 0.3 * np.bincount(text, minlength=len(row))
            row[7] += 1.5
            row /= 0.8
            row[np.argsort(-row, kind="stable")[20:]] = -np.inf
            expected = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
            assert value == pytest.approx(expected, abs=1e-5)
            text.append(token)
            logits = runner.decode([0], [token])
        runner.cache.remove_sequence(0)


def test_greedy_log_probs_are_of_temperature_one(tiny_model):
    runner = ModelRunner.load(tiny_model)
    one = generate(runner, PROMPTS[1], max_new_tokens=5, log_probs=True)
    runner.cache.add_sequence(0)
    logits = runner.prefill([0], [PROMPTS[1]])
    for token, value in zip(one.tokens, one.log_probs, strict=True):
        row = np.from_dlpack(logits)[0].astype(np.float64)
        assert token == row.argmax()
        expected = row.max() - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert value == pytest.approx(expected, abs=1e-5)
        logits = runner.decode([0], [token])


def test_stop_strings_end_each_text_where_they_are_complete(smollm2):
    runner = kvctl.ModelRunner.load(smollm2)
    text = runner.text
    prompts = [text.encode_chat(p) for p in ("Count from 1 to 9.", "Name three colours.")]
    whole = generate(runner, prompts, max_new_tokens=24)
    written = [text.decode(one.tokens) for one in whole]
    string = written[0][4:7]
    for drafter in (None, LookupDrafter(length=4)):
        found = generate(
            runner, prompts, max_new_tokens=24, stop_strings=[string, "###"], drafter=drafter
        )
        for one, before, full in zip(found, whole, written, strict=True):
            assert one.tokens == before.tokens[: len(one.tokens)]
            if string in full:
                assert one.finish_reason == "stop_string"
                assert string in text.decode(one.tokens)
                assert string not in text.decode(one.tokens[:-1])
            else:
                assert len(one.tokens) == 24
    with pytest.raises(ValueError, match="stop string must not be empty"):
        generate(runner, prompts, stop_strings=[""])
    with pytest.raises(TypeError, match="stop strings must be several"):
        generate(runner, prompts, stop_strings="a")


class Collector(LookupDrafter):
    """Drafts as lookup does, and collects the hidden states of each text."""

    def __init__(self, hidden_layers):
        super().__init__(length=3)
        self.hidden_layers = hidden_layers
        self.states, self.texts = {}, {}

    def start(self, request):
        super().start(request)
        self.states[request.id] = [np.from_dlpack(request.prompt_hidden).copy()]

    def observe(self, results):
        super().observe(results)
        for result in results:
            assert len(result.hidden) == 1 + len(result.accepted) == len(result.kept)
            self.states[result.request.id].append(np.array(result.hidden))
            self.texts[result.request.id] = list(result.request.tokens)


def test_a_drafter_gets_the_hidden_states_of_every_token_but_the_root(tmp_path):
    directory = compile_tiny_model(
        tmp_path / "m", changes={"num_hidden_layers": 3}, hidden_layers=[0, 2]
    )
    options = {"prefill_chunk_size": 16, "page_size": 4, "max_sequences": 5}
    drafter = Collector(layers := (2, 0))
    prompts = PROMPTS
    runner = ModelRunner.load(directory, max_total_tokens=128, **options)
    found = generate(runner, prompts, max_new_tokens=50, drafter=drafter)
    roomy = ModelRunner.load(directory, max_total_tokens=2048, **options)
    assert Statistics.merge(one.statistics for one in found).replayed_tokens > 0
    for i, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        assert one.tokens == generate(roomy, prompt, max_new_tokens=50).tokens
        text = drafter.texts[i]
        assert text == prompt + one.tokens
        roomy.cache.add_sequence(0)
        _, states = roomy.forward([0], [text], hidden=layers)
        expected = np.from_dlpack(states).copy()
        roomy.cache.remove_sequence(0)
        collected = np.concatenate(drafter.states[i])
        # An accepted draft that ends the text is its last token, and was forwarded.
        assert len(collected) in (len(text) - 1, len(text))
        np.testing.assert_array_equal(collected, expected[: len(collected)])
