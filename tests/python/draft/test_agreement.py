"""What is learnt of tokens that several drafters propose, or only one of them."""

from __future__ import annotations

import pytest

import kvctl
from kvctl.draft import Budget, Draft, Drafter, Request, RoundCost, RoundResult
from kvctl.draft.mixed.agreement import Agreement, kinds_of


def test_kinds():
    #  part 0: root - 1 - 2 - 3     part 1: root - 1 - 4,  root - 5
    parents = [-1, 0, 1, 2, 1, 0]
    kinds = kinds_of(parents, [[0, 1, 2, 3], [0, 1, 4, 5]])
    both, alone = Agreement.BOTH, Agreement.ALONE
    assert kinds[1:] == [both, 0, alone, 1, 1]
    # Nodes that were left out say nothing.
    assert kinds_of([-1, 0], [[0, 1], [0, -1]])[1:] == [alone]
    assert kinds_of([-1], [[0], [0]]) == [alone]


def test_odds_follow_what_came():
    agreement = Agreement()
    assert agreement.rate(0, 0.3) == pytest.approx(0.3)
    for _ in range(300):
        agreement.observe(0, 0.5, False)
        agreement.observe(Agreement.BOTH, 0.5, True)
        agreement.observe(Agreement.ALONE, 0.5, False)
        agreement.observe(1, 0.5, True)
        agreement.observe(1, 0.5, False)
    assert agreement.rate(0, 0.5) < 0.1 < 0.9 < agreement.rate(Agreement.BOTH, 0.5) < 1.0
    assert agreement.rate(Agreement.ALONE, 0.5) == 0.5
    assert agreement.rate(1, 0.5) == pytest.approx(0.5, abs=0.01)
    for rate in (0.0, 1.0):
        assert agreement.rate(0, rate) == pytest.approx(rate)


class Fixed(Drafter):
    def __init__(self, token, rate):
        self.draft = Draft(kvctl.TokenTree([9, token], [-1, 0]), rates=[1.0, rate])

    def propose(self, requests, budget):
        return [self.draft]


def test_a_mixed_drafter_learns_which_of_two_is_right():
    mixed = Fixed(1, 0.5) | Fixed(2, 0.5)
    one = Request(0, [3, 9], 1, 0, kvctl.Sampling(temperature=0.0), limit=16)
    for _ in range(50):
        [draft] = mixed.propose([one], Budget(RoundCost()))
        mixed.observe([RoundResult(one, draft, [0], [], [2], [0], None, 1, 0.1, False)])
    [draft] = mixed.propose([one], Budget(RoundCost()))
    assert draft.tree.tokens.tolist() == [9, 1, 2]
    assert draft.rates[1] < 0.2 < 0.8 < draft.rates[2]
    assert mixed.drafters[0].draft.rates == [1.0, 0.5]  # each learns of its own
