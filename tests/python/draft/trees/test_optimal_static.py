"""The best shape by rank, against all shapes."""

from __future__ import annotations

import numpy as np
import pytest

from kvctl.draft.trees import optimal_static
from tree_oracle import expected, shapes


def random_rates(rng, *shape):
    rates = rng.random(shape) * (rng.random(shape) < 0.85)
    return rates / np.maximum(rates.sum(axis=-1, keepdims=True), 1.0)


def check_consistent(tree, acceptance):
    """Every node's rate follows from its rank and its parent's; ranks count up."""
    seen = {}
    for node in range(1, len(tree)):
        parent, rank = tree.parents[node], tree.ranks[node]
        assert rank == seen.get(int(parent), 0)
        seen[int(parent)] = rank + 1
        row = acceptance if acceptance.ndim == 1 else acceptance[tree.depths[parent]]
        assert tree.rates[node] == pytest.approx(tree.rates[parent] * row[rank])
        assert tree.depths[node] == tree.depths[parent] + 1
    assert (np.diff(tree.depths) >= 0).all()


@pytest.mark.parametrize("seed", range(12))
def test_no_shape_of_as_many_nodes_is_better(seed):
    rng = np.random.default_rng(seed)
    acceptance = random_rates(rng, 3)
    max_depth = None if seed % 2 else 2
    for budget in range(6):
        tree = optimal_static(acceptance, None, budget, max_depth=max_depth)
        check_consistent(tree, acceptance)
        best = max(
            expected(shape, acceptance)
            for size in range(1, budget + 2)
            for shape in shapes(size, 3, max_depth or budget)
        )
        assert tree.expected_tokens == pytest.approx(best)


@pytest.mark.parametrize("seed", range(12))
def test_acceptance_by_depth(seed):
    rng = np.random.default_rng(seed)
    acceptance = random_rates(rng, 3, 2)
    tree = optimal_static(acceptance, None, 5)
    check_consistent(tree, acceptance)
    best = max(expected(shape, acceptance) for size in range(1, 7) for shape in shapes(size, 2, 3))
    assert tree.expected_tokens == pytest.approx(best)


@pytest.mark.parametrize("seed", range(12))
def test_the_size_is_the_best_one_under_the_cost(seed):
    rng = np.random.default_rng(seed)
    acceptance = random_rates(rng, 3)
    costs = np.cumsum(rng.random(6) * 0.5) + 1
    tree = optimal_static(acceptance, lambda rows: costs[rows - 1], 5)
    best = max(
        expected(shape, acceptance) * costs[0] / costs[size - 1]
        for size in range(1, 7)
        for shape in shapes(size, 3, 5)
    )
    assert tree.gain == pytest.approx(best)


def test_known_shapes():
    chain = optimal_static([1.0], None, 5)
    assert chain.parents.tolist() == [-1, 0, 1, 2, 3, 4]
    flat = optimal_static([0.4, 0.3, 0.2], None, 3, max_depth=1)
    assert flat.parents.tolist() == [-1, 0, 0, 0]
    assert len(optimal_static([0.0, 0.0], None, 8)) == 1
    assert len(optimal_static([0.5], None, 8, max_depth=0)) == 1
    assert len(optimal_static([0.5], float, 8)) == 1
    # A first child that is never right is drafted where the second one pays for it.
    assert optimal_static([0.0, 1.0], None, 2).ranks.tolist() == [-1, 0, 1]


def test_fill():
    tree = optimal_static([0.6, 0.2], None, 2)
    assert tree.fill([5, 6, 7]).tokens.tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match="a tree of 2 tokens needs 2 parents, got 3"):
        tree.fill([5, 6])


@pytest.mark.parametrize(
    ("acceptance", "budget", "options", "message"),
    [
        ([0.5, np.nan], 2, {}, r"in \[0, 1\], got nan at \(1,\)"),
        ([[0.5, 0.1], [-0.2, 0.1]], 2, {}, r"got -0\.2 at \(1, 0\)"),
        ([0.8, 0.7], 2, {}, "sum to at most 1, got 1.5"),
        ([], 2, {}, r"got shape \(0,\)"),
        ([0.5], -1, {}, "budget must not be negative"),
        ([0.5], 2, {"max_depth": -1}, "max_depth must not be negative, got -1"),
    ],
)
def test_refusals(acceptance, budget, options, message):
    with pytest.raises(ValueError, match=message):
        optimal_static(acceptance, None, budget, **options)


def test_a_cost_that_falls_is_refused():
    with pytest.raises(ValueError, match=r"must not fall with more rows, got 2\.0 for 2"):
        optimal_static([0.5], lambda rows: [1.0, 2.0, 1.5][rows - 1], 2)
