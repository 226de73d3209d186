"""Drafts and tokens that come of the same random numbers (Daliri et al., arXiv 2408.07978).

Draft and target see the same numbers and nothing of each other, so that a text does not depend on
who drafts. A rule here sees the draft: it draws the target's token from its distribution given the
drafted one, which is that of the two sides.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...testing.distribution import Float64
from ...verification import DraftedTree
from .merged import Selection, descend


def gumbel(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Verify a chain whose tokens are the largest of log-probabilities with Gumbel noise."""
    return descend(drafted, rng, _selection(_gumbel_shares))


def min_hash(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Verify a chain whose tokens are the first of random points below the probabilities."""
    return descend(drafted, rng, _selection(_min_hash_shares))


def _selection(shares: Any) -> Selection:
    def select(p: Float64, q: Float64, tokens: list[int], rng: Any) -> tuple[int | None, int]:
        (drawn,) = tokens
        token = rng.categorical(shares(p, q, drawn))
        return (0 if token == drawn else None), token

    return select


def _gumbel_shares(p: Float64, q: Float64, drawn: int) -> Float64:
    """Return the probability that the draft is `drawn` and the target's token is each token.

    The tokens are argmin E_i / q_i and argmin E_i / p_i of the same exponential variables. With
    E_y = r E_x, the others are large enough with probability exp(-E_x sum of max(q_j / q_x,
    r p_j / p_y)), and E_x integrates out.
    """
    shares = np.zeros_like(p)
    for token in np.flatnonzero(p > 0):
        if token == drawn:
            shares[token] = 1.0 / np.maximum(p / p[token], q / q[token]).sum()
            continue
        begin, end = q[token] / q[drawn], p[token] / p[drawn] if p[drawn] > 0 else np.inf
        if begin >= end:
            continue
        others = np.ones(len(p), bool)
        others[[drawn, int(token)]] = False
        fixed, growing = q[others] / q[drawn], p[others] / p[token]
        turns = fixed[growing > 0] / growing[growing > 0]
        ends = [begin, *sorted(one for one in turns if begin < one < end), end]
        for low, high in pairwise(ends):
            # In between, each maximum is one of its two terms.
            grows = growing * (low + 1.0 if high == np.inf else (low + high) / 2) >= fixed
            base, slope = 1.0 + fixed[~grows].sum(), 1.0 + growing[grows].sum()
            at_high = 1.0 / (base + slope * high) if high < np.inf else 0.0
            shares[token] += (1.0 / (base + slope * low) - at_high) / slope
    return shares


def _min_hash_shares(p: Float64, q: Float64, drawn: int) -> Float64:
    """Return the same where each side takes the first point that is below its probability."""
    shares = (max(q[drawn] - p[drawn], 0.0) * p) + np.maximum(p - q, 0.0) * q[drawn]
    shares[drawn] += min(p[drawn], q[drawn])
    found: Float64 = shares / np.maximum(p, q).sum()
    return found
