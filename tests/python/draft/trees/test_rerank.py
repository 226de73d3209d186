"""The best subtree of candidates, against all subtrees."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from kvctl.draft.trees import rerank
from tree_oracle import best_sum


def random_candidates(rng, size):
    parents = [-1, *(int(rng.integers(node)) for node in range(1, size))]
    rates = [1.0]
    for node in range(1, size):
        rates.append(rates[parents[node]] * float(rng.choice([0.0, 0.3, 0.5, 0.9, 1.0])))
    return kvctl.TokenTree(rng.integers(0, 50, size), parents), rates


@pytest.mark.parametrize("seed", range(30))
def test_no_subtree_of_as_many_nodes_is_better(seed):
    rng = np.random.default_rng(seed)
    candidates, rates = random_candidates(rng, 9)
    for budget in range(10):
        best = rerank(candidates, rates, budget)
        assert best.expected_tokens == pytest.approx(
            best_sum(rates, candidates.parents, len(best.tree))
        )
        assert len(best.tree) == min(budget + 1, np.count_nonzero(rates))
        assert np.array_equal(best.tree.tokens, candidates.tokens[best.nodes])
        assert np.array_equal(best.rates, np.array(rates)[best.nodes])


@pytest.mark.parametrize("seed", range(30))
def test_the_size_is_the_best_one_under_the_cost(seed):
    rng = np.random.default_rng(seed)
    candidates, rates = random_candidates(rng, 8)
    costs = np.cumsum(rng.random(8) * 0.6) + 1
    best = rerank(candidates, rates, 7, cost=lambda rows: costs[rows - 1])
    gains = [
        best_sum(rates, candidates.parents, rows) * costs[0] / costs[rows - 1]
        for rows in range(1, 9)
    ]
    assert best.gain == pytest.approx(max(gains))


@pytest.mark.parametrize(
    ("rates", "budget", "message"),
    [
        ([1, 0.5, np.nan], 1, r"in \[0, 1\], got nan for node 2"),
        ([1, -0.5, 0.1], 1, r"in \[0, 1\], got -0\.5 for node 1"),
        ([1, 0.2, 0.5], 1, "node 2 has 0.5 and its parent, node 1, 0.2"),
        ([0.5, 0.2, 0.1], 1, "the root is always kept, so its rate must be 1, got 0.5"),
        ([1, 0.5], 1, r"3 candidates need one rate each, got shape \(2,\)"),
        ([1, 0.5, 0.1], -2, "budget must not be negative, got -2"),
    ],
)
def test_refusals(rates, budget, message):
    with pytest.raises(ValueError, match=message):
        rerank(kvctl.TokenTree.chain([1, 2, 3]), rates, budget)
