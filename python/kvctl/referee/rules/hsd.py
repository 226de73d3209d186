"""Hierarchical speculative decoding (Zhou et al. 2026, arXiv 2601.05724) for one drafted chain.

``last_ratio_capped`` accepts the whole chain with the capped ratio of its probabilities, as it
treats every shorter prefix. ``last_ratio_whole`` does so with the whole ratio, as the authors'
published code does (github.com/ZhouYuxuanYX/Hierarchical-Speculative-Decoding at b8575e2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...verification import DraftedTree


def last_ratio_capped(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Go back from the end of the chain; every ratio is capped by the largest before it."""
    return _backwards(drafted, rng, capped=True)


def last_ratio_whole(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Do the same, with the whole ratio at the end of the chain."""
    return _backwards(drafted, rng, capped=False)


def _backwards(drafted: DraftedTree, rng: Any, *, capped: bool) -> tuple[int, int]:
    path, ratios, whole = [0], [1.0], 1.0
    while children := drafted.children(path[-1]):
        (child,) = children
        token = int(drafted.tree.tokens[child])
        factor = float(drafted.p(path[-1])[token] / drafted.distribution_of(child)[token])
        whole *= factor
        # Dividing by the largest ratio so far, and by 1, is to cap at 1 on the way.
        ratios.append(min(1.0, ratios[-1] * factor))
        path.append(child)
    if rng.bernoulli(min(1.0, ratios[-1] if capped else whole)):
        return path[-1], rng.categorical(drafted.p(path[-1]))
    for depth in range(len(path) - 2, 0, -1):
        node = path[depth]
        difference = ratios[depth] * drafted.p(node) - drafted.distribution_of(path[depth + 1])
        more, less = np.maximum(difference, 0.0), np.maximum(-difference, 0.0)
        most = max(float(more.sum()), float(less.sum()))
        if most > 0 and rng.bernoulli(min(1.0, float(more.sum()) / most)):
            return node, rng.categorical(more)
    # At the root as much is missing as is too much.
    return 0, rng.categorical(np.maximum(drafted.p(0) - drafted.distribution_of(path[1]), 0.0))
