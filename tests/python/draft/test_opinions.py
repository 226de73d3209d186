"""Other drafters' tokens are rated by what a drafter thinks of them that is asked."""

from __future__ import annotations

import random

import pytest

import kvctl
from kvctl.draft import Budget, Draft, Drafter, Request, RoundCost, RoundResult
from kvctl.draft.mixed.agreement import Agreement
from kvctl.draft.mixed.evidence import evidence_of
from kvctl.draft.mixed.pool import OpinionPool
from kvctl.draft.opinion import OfNodes


class Table:
    """An opinion of pairs (node, token)."""

    def __init__(self, table):
        self.table = table

    def probability(self, node, token):
        return self.table.get((node, token))


def draft(tokens, parents, rates, opinion=None):
    return Draft(kvctl.TokenTree(tokens, parents), rates=rates, opinion=opinion)


def test_nodes_of_a_larger_tree_are_found():
    opinion = OfNodes(Table({(4, 7): 0.25}), [0, 4])
    assert opinion.probability(1, 7) == 0.25
    assert opinion.probability(0, 7) is None


def test_evidence_is_given_the_parent_and_by_those_that_are_heard():
    #  head: 9 - 1 - 2, 9 - 3     suffix: 9 - 1 - 5,  9 - 4 - 6
    opinion = Table({(0, 1): 0.7, (0, 4): 0.01, (1, 5): 0.2})
    head = draft([9, 1, 2, 3], [-1, 0, 1, 0], [1, 0.6, 0.3, 0.1], opinion)
    suffix = draft([9, 1, 5, 4, 6], [-1, 0, 1, 0, 3], [1, 0.4, 0.1, 0.5, 0.4])
    tokens, parents = [9, 1, 2, 3, 5, 4, 6], [-1, 0, 1, 0, 1, 0, 5]
    found = evidence_of(tokens, parents, [head, suffix], [[0, 1, 2, 3], [0, 1, 4, 5, 6]])
    asked = Agreement.ASKED
    # Of the token 6 the head says nothing, and the nodes that only it has are rated as before.
    assert found.kinds[1:] == [asked, 0, 0, asked, asked, Agreement.ALONE]
    assert found.expected[1:] == pytest.approx([0.4, 0.5, 0.1, 0.25, 0.5, 0.8])
    assert found.opinions[1:] == [0.7, 0, 0, 0.2, 0.01, 0]
    rates = found.rates(parents, Agreement())
    assert rates[6] == pytest.approx(0.8 * rates[5])
    assert rates[5] < 0.25  # what stands behind a token that the head does not believe in


@pytest.mark.parametrize("said", [float("nan"), -0.1, 1.5])
def test_an_opinion_that_is_no_probability_is_refused(said):
    """NaN stayed in the pool's weights, and then no node was rated any more."""
    head = draft([9, 1], [-1, 0], [1, 0.6], Table({(0, 4): said}))
    suffix = draft([9, 4], [-1, 0], [1, 0.5])
    with pytest.raises(ValueError, match=f"must be a probability from 0 to 1, not {said}"):
        evidence_of([9, 1, 4], [-1, 0, 0], [head, suffix], [[0, 1], [0, 2]])


def test_what_nobody_was_asked_about_is_believed_as_before():
    a = draft([9, 1], [-1, 0], [1, 0.6])
    b = draft([9, 1, 2], [-1, 0, 1], [1, 0.4, 0.3])
    found = evidence_of([9, 1, 2], [-1, 0, 1], [a, b], [[0, 1], [0, 1, 2]])
    assert found.kinds[1:] == [Agreement.BOTH, Agreement.ALONE]
    assert found.expected[1:] == pytest.approx([0.6, 0.75])


def test_a_pool_believes_both_before_it_learnt():
    pool = OpinionPool()
    rates = [pool.rate(0.3, asked) for asked in (0.0, 1e-4, 1e-2, 0.3, 1.0)]
    assert rates == sorted(rates) and rates[1] < 0.03 < 0.3 < rates[3]
    assert pool.rate(0.2, 0.1) < pool.rate(0.6, 0.1)
    assert 0.0 < pool.rate(0.0, 0.0) < pool.rate(1.0, 1.0) < 1.0


@pytest.mark.parametrize("right", [0, 1], ids=["the proposer", "the asked"])
def test_a_pool_learns_whom_to_believe(right):
    rng, pool = random.Random(right), OpinionPool()
    for _ in range(1500):
        said = [rng.uniform(0.02, 0.98) for _ in range(2)]
        pool.observe(*said, rng.random() < said[right])
    for one in (0.1, 0.5, 0.9):
        for other in (0.1, 0.9):
            said = (one, other) if right == 0 else (other, one)
            assert pool.rate(*said) == pytest.approx(one, abs=0.15)


class Fixed(Drafter):
    def __init__(self, one):
        self.draft = one

    def propose(self, requests, budget):
        return [self.draft]


def test_a_mixed_drafter_asks_and_learns():
    opinion = Table({(0, 2): 0.001})
    mixed = Fixed(draft([9, 1], [-1, 0], [1, 0.4], opinion)) | Fixed(
        draft([9, 2, 3], [-1, 0, 1], [1, 0.5, 0.4])
    )
    one = Request(0, [3, 9], 1, 0, kvctl.Sampling(temperature=0.0), limit=16)

    def rates():
        return mixed.propose([one], Budget(RoundCost()))[0].rates

    first = rates()
    assert first[2] < 0.15 and first[3] == pytest.approx(0.8 * first[2])
    opinion.table[0, 2] = 0.5
    assert rates()[2] > 0.5
    opinion.table[0, 2] = 0.001
    # The head is wrong: what it does not believe comes each time.
    for _ in range(60):
        [merged] = mixed.propose([one], Budget(RoundCost()))
        mixed.observe([RoundResult(one, merged, [0], [], [2], [0], None, 1, 0.1, False)])
    assert rates()[2] > 0.7
