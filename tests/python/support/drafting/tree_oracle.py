"""All trees of a small budget, to compare builders with."""

from __future__ import annotations

import itertools

import numpy as np


def best_sum(rates, parents, size):
    """Return the largest sum of rates over all subtrees of `size` nodes with the root."""
    others = range(1, len(rates))
    best = -np.inf
    for chosen in itertools.combinations(others, size - 1):
        kept = {0, *chosen}
        if all(parents[node] in kept for node in chosen):
            best = max(best, rates[0] + sum(rates[node] for node in chosen))
    return best


def lattice(marginals):
    """Return the rates and parents of all paths over marginals, the root first."""
    rates, parents, level = [1.0], [-1], [0]
    for row in marginals:
        following = []
        for node in level:
            for prob in row:
                following.append(len(rates))
                rates.append(rates[node] * float(prob))
                parents.append(node)
        level = following
    return rates, parents


def shapes(size, ranks, depth):
    """Yield every tree of `size` nodes as the list of its children's trees, by rank."""
    if size == 1:
        yield []
        return
    if depth == 0:
        return
    yield from _forests(size - 1, ranks, depth)


def _forests(size, ranks, depth, used=0):
    if size == 0:
        yield []
        return
    if used == ranks:
        return
    for first in range(1, size + 1):
        for child in shapes(first, ranks, depth - 1):
            for others in _forests(size - first, ranks, depth, used + 1):
                yield [child, *others]


def expected(shape, acceptance, depth=0):
    """Return the expected tokens of a shape."""
    row = acceptance[depth] if np.ndim(acceptance) == 2 and depth < len(acceptance) else acceptance
    return 1.0 + sum(
        row[rank] * expected(child, acceptance, depth + 1) for rank, child in enumerate(shape)
    )
