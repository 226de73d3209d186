"""The best tree over marginals, against all trees of small lattices."""

from __future__ import annotations

import numpy as np
import pytest

from kvctl.draft.trees import best_first
from tree_oracle import best_sum, lattice


def random_marginals(rng, depth, width):
    probs = rng.dirichlet(np.full(width, 0.7), depth)
    probs[rng.random((depth, width)) < 0.2] = 0
    return probs


@pytest.mark.parametrize("seed", range(20))
def test_no_tree_of_as_many_nodes_is_better(seed):
    rng = np.random.default_rng(seed)
    depth, width = [(1, 5), (2, 3), (3, 2)][seed % 3]
    marginals = random_marginals(rng, depth, width)
    rates, parents = lattice(marginals)
    for budget in range(6):
        grown = best_first(marginals, budget, root=9)
        assert grown.tree.tokens[0] == 9
        if len(grown.tree) == budget + 1:
            assert grown.expected_tokens == pytest.approx(best_sum(rates, parents, budget + 1))
        else:  # all paths that are possible at all
            assert len(grown.tree) == np.count_nonzero(rates)


@pytest.mark.parametrize("seed", range(20))
def test_the_size_is_the_best_one_under_the_cost(seed):
    rng = np.random.default_rng(100 + seed)
    marginals = random_marginals(rng, 3, 2)
    costs = np.cumsum(rng.random(8) * 0.5) + 1
    rates, parents = lattice(marginals)
    grown = best_first(marginals, 6, root=0, cost=lambda rows: costs[rows - 1])
    gains = [
        best_sum(rates, parents, rows) * costs[0] / costs[rows - 1]
        for rows in range(1, min(7, np.count_nonzero(rates)) + 1)
    ]
    assert grown.gain == pytest.approx(max(gains))
    assert grown.gain == pytest.approx(
        grown.expected_tokens * costs[0] / costs[len(grown.tree) - 1]
    )
    assert len(grown.tree) == 1 + int(np.argmax(gains))


def test_rates_are_products_of_marginals():
    marginals = np.array([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])
    grown = best_first(marginals, 8, root=4)
    tree = grown.tree
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        prob = marginals[tree.depths[node] - 1, tree.tokens[node]]
        assert grown.rates[node] == pytest.approx(grown.rates[parent] * prob)
    assert (np.diff(grown.rates) <= 0).all()
    assert len(tree) == 1 + 8
    assert len(best_first(marginals, 99, root=4).tree) == 1 + 3 + 3 * 2  # none of probability 0


def test_float32_of_a_wide_vocabulary_with_and_without_its_tokens():
    rng = np.random.default_rng(3)
    dense = rng.dirichlet(np.full(5000, 0.01), 6).astype(np.float32)
    tokens = np.argsort(-dense, axis=1, kind="stable")[:, :32]
    top = np.take_along_axis(dense, tokens, 1)
    all_of_it = best_first(dense, 32, root=1)
    best_of_it = best_first(top, 32, root=1, tokens=tokens)
    assert all_of_it.tree == best_of_it.tree
    assert np.array_equal(all_of_it.rates, best_of_it.rates)


def test_nothing_to_draft():
    assert len(best_first(np.empty((0, 4)), 5, root=1).tree) == 1
    assert len(best_first([[0.5, 0.5]], 0, root=1).tree) == 1
    assert len(best_first([[0.0, 0.0]], 5, root=1).tree) == 1
    dear = best_first([[0.5, 0.5]], 2, root=1, cost=lambda rows: float(rows))
    assert (len(dear.tree), dear.gain) == (1, 1.0)


@pytest.mark.parametrize(
    ("marginals", "budget", "options", "message"),
    [
        ([[0.5, np.nan]], 2, {}, r"marginals\[0, 1\] must be a probability, in \[0, 1\], got nan"),
        ([[0.5], [-0.1]], 2, {}, r"marginals\[1, 0\] must be a probability.*-0\.1"),
        ([[0.7, 0.7]], 2, {}, r"marginals\[0\] must sum to at most 1, got 1\.4"),
        ([[7.0]], 2, {}, r"marginals\[0, 0\].*got 7"),
        ([0.5, 0.5], 2, {}, "two dimensions"),
        ([[0.5]], -1, {}, "budget must not be negative, got -1"),
        ([[0.5, 0.5]], 2, {"tokens": [[3, 3]]}, r"tokens\[0\] has token 3 twice"),
        ([[0.5, 0.5]], 2, {"tokens": [[3, -3]]}, r"tokens\[0\] must be at least 0, got -3"),
        ([[0.5, 0.5]], 2, {"tokens": [[3]]}, r"tokens must have the shape of marginals, \(1, 2\)"),
        ([[0.5, 0.5]], 2, {"cost": lambda rows: 3.0 - rows}, "must be a positive number, got 0.0"),
        ([[0.5, 0.5]], 1, {"cost": lambda rows: 3.0 - rows}, "must not fall with more rows"),
        ([[0.5, 0.5]], 2, {"cost": lambda rows: float("nan")}, "positive number, got nan"),
        ([[0.5, 0.5]], 2, {"root": -1}, "token of node 0 must be at least 0, got -1"),
    ],
)
def test_refusals(marginals, budget, options, message):
    with pytest.raises(ValueError, match=message):
        best_first(marginals, budget, **{"root": 0, **options})
