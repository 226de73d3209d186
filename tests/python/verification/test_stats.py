"""kvctl.verification.AcceptanceStats."""

import math

import numpy as np
import pytest

import kvctl
from kvctl.verification import AcceptanceStats

VOCAB = 10


def greedy_round(accepted, length=3):
    """Verify a chain of `length` drafts of which the first `accepted` are right."""
    tree = kvctl.TokenTree.chain([0, *range(1, length + 1)])
    logits = np.zeros((length + 1, VOCAB), np.float32)
    for i in range(length + 1):
        logits[i, i + 1 if i < accepted else 9] = 1
    return kvctl.verify(logits, tree, rule="greedy", drawn="deterministic")


def test_counts_by_depth_given_that_it_was_reached():
    stats = AcceptanceStats()
    for accepted in (0, 1, 1, 3):
        stats.add(greedy_round(accepted))
    assert stats.reached.tolist() == [4, 3, 1] and stats.accepted.tolist() == [3, 1, 1]
    np.testing.assert_allclose(stats.rates, [3 / 4, 1 / 3, 1])
    assert stats.rounds == 4 and stats.mean_emitted == (1 + 2 + 2 + 4) / 4
    low, high = stats.interval()
    assert low < stats.mean_emitted < high
    assert stats.speedup(draft_cost=0.25, verify_cost=1.25) == pytest.approx(2.25 / 1.5)
    assert "    2         3         1  0.333" in stats.table()


def test_sums_of_stats_are_stats_of_all():
    one, other, both = AcceptanceStats(), AcceptanceStats(), AcceptanceStats()
    for stats, rounds in ((one, [(0, 2), (2, 2)]), (other, [(4, 5)])):
        for accepted, length in rounds:
            stats.add(greedy_round(accepted, length))
            both.add(greedy_round(accepted, length))
    total = one + other
    for name in ("reached", "accepted", "emitted"):
        np.testing.assert_array_equal(getattr(total, name), getattr(both, name))
    assert len(one.reached) == 2  # unchanged


def test_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    truth = 1 + 0.5 + 0.25
    covered = 0
    for _ in range(200):
        emitted = 1 + (rng.random((80, 2)) < 0.5).cumprod(axis=1).sum(axis=1)
        stats = AcceptanceStats(emitted=np.bincount(emitted))
        low, high = stats.interval()
        covered += low < truth < high
    assert 0.88 < covered / 200 <= 1


def test_nothing_counted():
    stats = AcceptanceStats()
    assert math.isnan(stats.mean_emitted) and stats.interval() == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="must cost something"):
        stats.speedup(draft_cost=0, verify_cost=0)


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    stats = AcceptanceStats()
    stats.add(greedy_round(2))
    axes = stats.plot()
    assert axes.get_title() == "3.00 tokens per round"
