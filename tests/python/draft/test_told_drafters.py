"""Drafters that are told the answer, or an acceptance."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from fake_runner import FakeRunner
from kvctl.draft import ScriptedDrafter, SyntheticDrafter

PROMPTS = [[i, 1, 2] for i in range(6)]
TOKENS = 60


def plain(**options):
    return [
        one.tokens
        for one in kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS, **options)
    ]


def test_scripted_accepts_everything():
    answers = plain()
    drafter = ScriptedDrafter(answers, length=4)
    got = kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS, drafter=drafter)
    assert [one.tokens for one in got] == answers
    for one in got:
        assert set(one.statistics.acceptance_by_position) == {1.0}
        assert one.statistics.rounds == -(-(TOKENS - 1) // 5)


def test_scripted_says_nothing_where_the_text_is_another():
    answers = [[*tokens[:10], 39, *tokens[11:]] for tokens in plain()]
    drafter = ScriptedDrafter(answers, length=4)
    got = kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS, drafter=drafter)
    assert [one.tokens for one in got] == plain()
    assert all(one.statistics.rounds > 40 for one in got)


@pytest.mark.parametrize("sampling", [None, kvctl.Sampling(temperature=1.0)])
def test_synthetic_with_answers_has_the_rates_and_the_text(sampling):
    answers = plain(sampling=sampling)
    rates = [0.9, 0.6, 0.3]
    accepted, reached = np.zeros(3), np.zeros(3)
    for seed in range(10):
        got = kvctl.generate(
            FakeRunner(),
            PROMPTS,
            max_new_tokens=TOKENS,
            sampling=sampling,
            drafter=SyntheticDrafter(rates, answers=answers, seed=seed),
        )
        assert [one.tokens for one in got] == answers
        for one in got:
            accepted += one.statistics.accepted
            reached += one.statistics.reached
    deviation = np.sqrt(np.multiply(rates, 1 - np.array(rates)) / reached)
    assert (np.abs(accepted / reached - rates) < 5 * deviation).all()


def test_synthetic_by_coin_has_the_rates_and_says_that_its_text_is_another():
    drafter = SyntheticDrafter([0.8, 0.5])
    got = kvctl.generate(
        FakeRunner(), PROMPTS, max_new_tokens=300, drafter=drafter, rule=drafter.rule
    )
    accepted = sum(np.array(one.statistics.accepted) for one in got)
    reached = sum(np.array(one.statistics.reached) for one in got)
    rates = accepted / reached
    assert np.abs(rates - [0.8, 0.5]).max() < 0.08
    lengths = [one.statistics.mean_acceptance_length for one in got]
    assert np.mean(lengths) == pytest.approx(drafter.expected_tokens, abs=0.15)


@pytest.mark.parametrize("rule", ["auto", "target_only", "traversal"])
def test_synthetic_by_coin_is_refused_where_the_models_text_is_expected(rule):
    runner = FakeRunner()
    with pytest.raises(RuntimeError, match=r"only rule=drafter\.rule accepts.*not the model's"):
        kvctl.generate(
            runner,
            PROMPTS[0],
            drafter=SyntheticDrafter([0.8]),
            rule=rule,
            sampling=kvctl.Sampling(temperature=1.0),
        )
    assert runner.cache.committed == {}


def test_refusals():
    with pytest.raises(ValueError, match=r"rates\[1\] must be in \[0, 1\], got 1\.5"):
        SyntheticDrafter([0.5, 1.5])
    with pytest.raises(ValueError, match=r"rates\[0\] must be in \[0, 1\], got nan"):
        SyntheticDrafter([float("nan")])
    with pytest.raises(ValueError, match="length must not be negative, got -1"):
        ScriptedDrafter([[1]], length=-1)
    with pytest.raises(TypeError, match=r"answers\[0\] must be integers"):
        ScriptedDrafter([[1.5]])
    with pytest.raises(ValueError, match="there are 1 answers, and none for text 1"):
        kvctl.generate(FakeRunner(), PROMPTS, drafter=ScriptedDrafter([[1]]))
