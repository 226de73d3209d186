"""Figures and their intervals."""

import math

import numpy as np
import pytest

from kvctl.bench.figures import OVERALL, Interval, by_depth, figures_of, ratio_interval
from kvctl.bench.result import Answer, Configuration, Result, Round, Times


def answer(configuration, id, seconds, tokens=11, rounds=(), category="x"):
    times = Times(0.1, 0.0, 0.0, seconds - 0.1, 0.0, 0.0)
    return Answer(
        configuration,
        id,
        category,
        0,
        5,
        list(range(tokens)),
        "",
        "length",
        [seconds],
        times,
        list(rounds) or [Round(0, 0, 0, 0, 1)] * (tokens - 1),
    )


def result_of(answers):
    machine = {"before": {"load": 0}, "after": {"load": 0}, "cpus": 2}
    configurations = [Configuration(None), Configuration("lookup")]
    return Result("m", {}, {"temperature": 0}, machine, configurations, answers)


def test_by_hand():
    rounds = [
        Round(3, 3, 3, 2, 3),
        Round(3, 3, 1, 0, 1),
        Round(0, 0, 0, 0, 1),
        Round(2, 2, 2, 2, 3),
    ]
    rounds += [Round(1, 1, 1, 1, 2)]
    answers = [answer(0, 1, 2.0), answer(1, 1, 1.0, rounds=rounds)]
    plain, one = figures_of(result_of(answers))
    assert plain.speedup.value == 1 and plain.tokens_per_round == 1
    assert math.isnan(plain.acceptance_length) and plain.rates == []
    assert one.category == OVERALL and one.tokens_per_second == 11
    assert one.speedup.value == 2 and math.isnan(one.speedup.low)
    assert one.decode_speedup.value == pytest.approx(1.9 / 0.9)
    assert one.tokens_per_round == 2 and one.acceptance_length == 9 / 4
    assert one.reached == [4, 2, 1] and one.accepted == [3, 2, 0]
    assert one.rates == [0.75, 1.0, 0.0] and one.mean_depth == 9 / 4
    assert one.same == 1 and not one.speedup.concludes


def test_json_has_no_nan(result):
    for one in figures_of(result):
        content = one.to_json()
        assert not any(v != v for v in content["rates"] if v is not None)
        assert set(content["speedup"]) == {"value", "low", "high"}


def test_an_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        own = rng.lognormal(0.5, 0.4, 40)
        base = rng.lognormal(0.0, 0.4, 40)
        interval = ratio_interval(np.stack([own, base]), np.arange(40), means=True)
        covered += interval.low <= math.exp(0.5) <= interval.high
    assert 175 <= covered <= 200  # 95 % of 200 are 190; a bootstrap covers slightly less


def test_questions_of_a_batch_are_resampled_together():
    values = np.stack([np.repeat([1.0, 3.0] * 5, 2), np.ones(20)])
    apart = ratio_interval(values, np.arange(20), means=True)
    together = ratio_interval(values, np.arange(20) // 2, means=True)
    assert together.value == apart.value == 2.0
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


def test_what_concludes():
    assert Interval(1.5, 1.45, 1.55).concludes and Interval(0.9, 0.85, 0.95).concludes
    assert not Interval(1.05, 0.98, 1.1).concludes
    assert not Interval(2.0, 1.5, 2.5).concludes
    assert not Interval(2.0, math.nan, math.nan).concludes


def test_rounds_without_drafts_reach_nothing():
    assert by_depth([]) == ([], [])
