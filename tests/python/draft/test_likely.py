"""What of a copied draft is proposed."""

from __future__ import annotations

import pytest

import kvctl
from kvctl.draft import Budget, LookupDrafter, Request, RoundCost, SuffixDrafter
from kvctl.draft.likely import likely_nodes

TOKENS, PARENTS = [9, 1, 2, 3, 4, 5], [-1, 0, 1, 0, 2, 3]


def test_unlikely_nodes_are_left_out():
    rates = [1, 0.3, 0.2, 0.02, 0.005, 0.009]
    assert likely_nodes(TOKENS, PARENTS, rates, 8) == (
        [9, 1, 2, 3],
        [-1, 0, 1, 0],
        [1, 0.3, 0.2, 0.02],
    )
    assert likely_nodes(TOKENS, PARENTS, [1, *[0.001] * 5], 8) == ([9], [-1], [1])


@pytest.mark.parametrize("most", range(6))
def test_the_likeliest_are_kept_as_by_prune(most):
    rates = [1, 0.3, 0.2, 0.3, 0.2, 0.3]
    tree = kvctl.TokenTree(TOKENS, PARENTS)
    expected, nodes = tree.prune(rates, 1 + most)
    tokens, parents, kept = likely_nodes(TOKENS, PARENTS, rates, most)
    assert kvctl.TokenTree(tokens, parents) == expected
    assert kept == [rates[node] for node in nodes.tolist()]


@pytest.mark.parametrize("make", [LookupDrafter, SuffixDrafter])
def test_a_doubtful_path_is_short_and_a_sure_one_is_long(make):
    drafter = make()
    text = [7, *range(20, 60), 7]
    request = Request(0, text, 1, 0, kvctl.Sampling(temperature=0.0), limit=30)
    drafter.start(request)
    [doubtful] = drafter.propose([request], Budget(RoundCost()))
    assert 1 < len(doubtful.tree) < 8
    for _ in range(30):
        for length in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13):
            own = drafter.acceptance if make is LookupDrafter else drafter._own.acceptance
            own.observe(length, 0, True)
    [sure] = drafter.propose([request], Budget(RoundCost()))
    assert len(sure.tree) > 12
