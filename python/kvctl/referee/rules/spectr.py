"""K-sequential selection of SpecTr (Sun et al. 2023, arXiv 2310.15141, section 4)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...testing.distribution import Float64
from ...verification import DraftedTree
from .merged import descend


def k_sequential(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Accept the first of k independent drafts that passes min(1, p / (rho q)).

    The divisor rho is the root of 1 - (1 - beta)^k = rho beta, beta being the probability that one
    draft passes. What is left of the target is drawn from where none does.
    """
    return descend(drafted, rng, _select)


def _select(p: Float64, q: Float64, tokens: list[int], rng: Any) -> tuple[int | None, int]:
    count = len(tokens)
    rho = _divisor(tuple(p), tuple(q), count)
    passing = np.minimum(q, p / rho)
    for index, token in enumerate(tokens):
        if rng.bernoulli(min(1.0, float(p[token] / (rho * q[token])))):
            return index, token
    beta = float(passing.sum())
    accepted = 1.0 - (1.0 - beta) ** count
    return None, rng.categorical(np.maximum(p - passing * accepted / beta, 0.0))


@lru_cache(maxsize=4096)
def _divisor(p: tuple[float, ...], q: tuple[float, ...], count: int) -> float:
    """Return rho by bisection between 1 and the number of drafts."""
    low, high = 1.0, float(count)
    for _ in range(100):
        rho = (low + high) / 2
        beta = float(np.minimum(np.array(q), np.array(p) / rho).sum())
        if 1.0 - (1.0 - beta) ** count >= rho * beta:
            low = rho
        else:
            high = rho
    return low if count == 1 else high
