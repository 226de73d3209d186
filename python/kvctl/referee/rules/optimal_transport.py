"""The best selection of one token among independent drafts: a linear program.

SpecTr (arXiv 2310.15141) states it as optimal transport with membership cost. The two steps of
Khisti et al. (arXiv 2410.18234), importance sampling and then single-draft speculative sampling,
reach the same acceptance with the best weights. Token by token it is an upper bound for every such
rule; rules that look ahead along a path may emit more. It needs SciPy.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from ...testing.distribution import Float64
from ...verification import DraftedTree
from .merged import descend


def optimal_transport(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Select by the optimal plan, token after token."""
    return descend(drafted, rng, _select)


def _select(p: Float64, q: Float64, tokens: list[int], rng: Any) -> tuple[int | None, int]:
    plan, residual = _plan(tuple(p), tuple(q), len(tokens))
    shares = plan[tuple(sorted(tokens))]
    different = sorted(set(tokens))
    weights = [*(shares[token] for token in different), max(0.0, 1.0 - sum(shares.values()))]
    chosen = rng.categorical(np.array(weights))
    if chosen < len(different):
        return tokens.index(different[chosen]), different[chosen]
    return None, rng.categorical(np.array(residual))


Plan = dict[tuple[int, ...], dict[int, float]]


@lru_cache(maxsize=4096)
def _plan(p: tuple[float, ...], q: tuple[float, ...], count: int) -> tuple[Plan, tuple[float, ...]]:
    """Return the probability of each token of each multiset of drafts, and the residual."""
    from scipy.optimize import linprog  # type: ignore[import-untyped]

    chances: dict[tuple[int, ...], float] = {}
    for drawn in product(range(len(p)), repeat=count):
        key = tuple(sorted(drawn))
        chances[key] = chances.get(key, 0.0) + float(np.prod([q[token] for token in drawn]))
    pairs = [(key, token) for key in chances for token in sorted(set(key))]
    keys = list(chances)
    rows = np.zeros((len(keys) + len(p), len(pairs)))
    for column, (key, token) in enumerate(pairs):
        rows[keys.index(key), column] = 1.0
        rows[len(keys) + token, column] = 1.0
    limits = [*chances.values(), *p]
    flow = linprog(-np.ones(len(pairs)), A_ub=rows, b_ub=limits, method="highs").x
    plan: Plan = {key: {} for key in keys}
    residual = np.array(p)
    for (key, token), amount in zip(pairs, np.maximum(flow, 0.0), strict=True):
        plan[key][token] = float(amount) / chances[key]
        residual[token] -= amount
    residual = np.maximum(residual, 0.0)
    if not residual.sum() > 0:
        residual = np.array(p)
    return plan, tuple(residual)
