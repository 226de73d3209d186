"""What ends a text, and what the loop does with drafters and stops of any kind."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from fake_runner import VOCABULARY, FakeRunner
from kvctl import ModelRunner, Sampling, TokenTree, generate
from kvctl.draft import Draft, Drafter, LookupDrafter
from kvctl.verification import AcceptanceStats, verify
from plain_model import compile_plain_model

PROMPT = [5, 6, 7, 8, 9, 5, 6]


class Scripted(Drafter):
    """Proposes what a function of the text and the limit says; records what it is taught."""

    def __init__(self, propose):
        self._propose = propose
        self.observed = []

    def start(self, request):
        self.text = list(request.tokens)

    def propose(self, requests, budget):
        [request] = requests
        assert self.text == list(request.tokens)
        tree = self._propose(self.text, request.limit)
        return [Draft(tree) if isinstance(tree, TokenTree) else tree]

    def observe(self, results):
        [result] = results
        self.observed.append(list(result.emitted))
        self.text += result.emitted


def oracle(whole, length=9, prompt=7):
    """Return a drafter that drafts the text itself."""

    def propose(text, limit):
        said = len(text) - prompt
        return TokenTree.chain([text[-1], *whole[said : said + min(length, limit)]])

    return Scripted(propose)


def whole_text(n=60, **options):
    return generate(FakeRunner(**options), PROMPT, max_new_tokens=n).tokens


BREAKS = {
    "another root": (
        lambda text, limit: TokenTree.chain([(text[-1] + 1) % VOCABULARY, 3]),
        ValueError,
        r"Scripted\.propose returned a tree with root \d+; .* last token of the text, \d+",
    ),
    "no root": (
        lambda text, limit: TokenTree.chain([(text[-1] + 2) % VOCABULARY]),
        ValueError,
        r"Scripted\.propose returned a tree with root",
    ),
    "beyond the limit": (
        lambda text, limit: TokenTree.chain([text[-1], *[3] * (limit + 1)]),
        ValueError,
        r"Scripted\.propose returned \d+ nodes behind the root; its limit was \d+",
    ),
    "outside the vocabulary": (
        lambda text, limit: TokenTree.chain([text[-1], VOCABULARY][: 1 + limit]),
        ValueError,
        rf"Scripted\.propose drafted token {VOCABULARY}; .* 0 to {VOCABULARY - 1}",
    ),
    "rows without a node": (
        lambda text, limit: TokenTree([text[-1], 1], [-1, 0], rows=[0, 2]),
        ValueError,
        r"Scripted\.propose returned a tree with 3 rows, some without a node",
    ),
    "a list": (lambda text, limit: [text[-1]], TypeError, r"kvctl\.draft\.Draft, got list"),
    "nothing": (lambda text, limit: None, TypeError, r"kvctl\.draft\.Draft, got NoneType"),
    "no tree": (
        lambda text, limit: Draft([text[-1]]),
        TypeError,
        r"Scripted\.propose must draft a kvctl\.TokenTree, got list",
    ),
    "rates of other nodes": (
        lambda text, limit: Draft(TokenTree.chain([text[-1]]), rates=[1.0, 0.5]),
        ValueError,
        r"Scripted\.propose returned 2 rates for 1 nodes",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_a_drafter_that_breaks_the_contract_is_named(kind, sampling, seed):
    propose, error, message = BREAKS[kind]
    rng, calls = random.Random(seed), [0]
    right = oracle(whole_text(), length=rng.randrange(4))._propose
    at = rng.randrange(6)

    def breaks_at_some_time(text, limit):
        calls[0] += 1
        return (propose if calls[0] > at else right)(text, limit)

    runner = FakeRunner()
    runner.cache.add_sequence(9)
    with pytest.raises(error, match=message):
        generate(
            runner,
            PROMPT,
            max_new_tokens=60,
            drafter=Scripted(breaks_at_some_time),
            sampling=sampling,
        )
    assert runner.cache.committed == {9: []}


@pytest.mark.parametrize("drafts", [None, [], "ab"])
def test_a_drafter_that_returns_no_drafts_is_named(drafts):
    class Few(Drafter):
        def propose(self, requests, budget):
            return drafts

    runner = FakeRunner()
    with pytest.raises((TypeError, ValueError), match=r"Few\.propose"):
        generate(runner, PROMPT, drafter=Few())
    assert runner.cache.committed == {}


def test_a_drafter_that_is_right_beyond_its_limit_is_refused():
    whole = whole_text(80)

    def propose(text, limit):
        said = len(text) - len(PROMPT)
        return TokenTree.chain([text[-1], *whole[said : said + 7]])

    with pytest.raises(ValueError, match="7 nodes behind the root; its limit was"):
        generate(FakeRunner(), PROMPT, max_new_tokens=20, drafter=Scripted(propose))


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0, repetition_penalty=1.1)])
@pytest.mark.parametrize("seed", range(8))
def test_random_stops_are_counted_and_taught_as_stop_tokens(sampling, seed):
    """Three ways to say where a text ends, with drafts far beyond: one meaning."""
    rng = np.random.default_rng(seed)
    options = {"max_new_tokens": 60, "sampling": sampling, "seed": seed}
    whole = generate(FakeRunner(), PROMPT, **options).tokens
    stops = rng.choice(VOCABULARY, 2, replace=False).tolist()
    first = next((i for i, token in enumerate(whole) if token in stops), 59)
    stopping = sampling or Sampling(temperature=0.0)
    ways = {
        "stop": {"stop": stops},
        "Sampling": {
            "sampling": Sampling(
                temperature=stopping.temperature,
                repetition_penalty=stopping.repetition_penalty,
                stop_tokens=stops,
            )
        },
        "stop_when": {"stop_when": lambda token: token in stops},
    }
    results = []
    for way, asked in ways.items():
        runner = FakeRunner()
        drafter = oracle(whole)
        generation = generate(runner, PROMPT, **{**options, **asked}, drafter=drafter)
        assert generation.tokens == whole[: first + 1], way
        stats = generation.statistics
        assert first == 0 or drafter.text == PROMPT + generation.tokens
        assert stats.new_tokens == len(generation.tokens)
        assert sum(stats.accepted) <= len(generation.tokens) - 1
        ended = "length" if first == 59 else "stop_string" if way == "stop_when" else "stop_token"
        assert generation.finish_reason == ended
        assert generation.stopped == (ended != "length")
        results.append((stats.rounds, stats.reached, stats.accepted, stats.speculative_tokens))
    assert results[0] == results[1] == results[2]


def test_a_first_token_that_stops_starts_no_drafter():
    whole = whole_text()
    drafter = Scripted(lambda text, limit: pytest.fail("the text has ended"))
    generation = generate(FakeRunner(), PROMPT, stop=[whole[0], -3, 10**12], drafter=drafter)
    assert generation.tokens == whole[:1] and not hasattr(drafter, "text")


@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_a_text_says_why_it_ended(drafter):
    whole = whole_text(80)

    def reason(runner=None, **options):
        options.setdefault("max_new_tokens", 60)
        drafts = LookupDrafter(length=4) if drafter else None
        generation = generate(runner or FakeRunner(), PROMPT, drafter=drafts, **options)
        return generation.finish_reason, len(generation.tokens)

    small = FakeRunner()
    small.context_window_size = 30
    assert reason() == ("length", 60)
    assert reason(FakeRunner(pages=2)) == ("cache", 32 - len(PROMPT) + 1)
    assert reason(small) == ("context", 30 - len(PROMPT) + 1)
    assert reason(stop=[whole[0]]) == ("stop_token", 1)
    assert reason(stop_when=lambda token: token == whole[0]) == ("stop_string", 1)
    with pytest.raises(ValueError, match="room for 30 in the cache: the model's context"):
        generate(small, [1] * 31)


@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_a_model_with_a_window_goes_on(tmp_path, drafter):
    directory = compile_plain_model(
        tmp_path / "model",
        context_window_size=-1,
        sliding_window_size=20,
        attention_sink_size=4,
    )
    roomy = ModelRunner.load(directory, max_total_tokens=1024, max_sequences=1)
    runner = ModelRunner.load(
        directory, max_total_tokens=64, max_sequences=1, prefill_chunk_size=16
    )
    prompt = np.random.default_rng(3).integers(0, 256, 100).tolist()
    expected = generate(roomy, prompt, max_new_tokens=150)
    drafts = oracle(expected.tokens, 5, len(prompt)) if drafter else None
    generation = generate(runner, prompt, max_new_tokens=150, drafter=drafts)
    assert generation.tokens == expected.tokens and generation.finish_reason == "length"
    if drafts is not None:
        assert generation.statistics.rounds < 100
    assert runner.cache.num_available_tokens < 100 + 150


def test_statistics_mean_what_verification_counts():
    """Acceptance by position, if reached, and acceptance length with the last token."""
    rng = np.random.default_rng(2)
    whole = whole_text(80)
    counted = AcceptanceStats()

    def propose(text, limit):
        said = len(text) - len(PROMPT)
        right = whole[said : said + int(rng.integers(0, min(6, limit) + 1))]
        wrong = [t if rng.random() < 0.8 else (t + 1) % VOCABULARY for t in right]
        return TokenTree.chain([text[-1], *wrong])

    runner = FakeRunner()
    forward = runner.verify

    def verify_and_count(seq_ids, trees):
        logits = forward(seq_ids, trees)
        counted.add(verify(logits, trees, rule="greedy", drawn="deterministic"))
        return logits

    runner.verify = verify_and_count
    stats = generate(runner, PROMPT, max_new_tokens=60, drafter=Scripted(propose)).statistics
    assert stats.speculative_rounds == counted.rounds
    n = len(counted.reached)
    assert stats.reached[:n] == counted.reached.tolist() and not any(stats.reached[n:])
    assert stats.accepted[: len(counted.accepted)] == counted.accepted.tolist()
    np.testing.assert_allclose(stats.acceptance_by_position[:n], counted.rates)
    assert stats.mean_acceptance_length == pytest.approx(counted.mean_emitted)
    assert stats.mean_acceptance_length == pytest.approx(1 + stats.mean_accepted_drafts)
    assert stats.cumulative_acceptance[0] == stats.acceptance_by_position[0]
    assert math.isnan(generate(FakeRunner(), PROMPT).statistics.mean_acceptance_length)
