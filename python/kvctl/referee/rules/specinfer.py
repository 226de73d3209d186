"""Multi-step speculative sampling of SpecInfer (arXiv 2305.09781, algorithm 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...verification import DraftedTree


def multi_step(drafted: DraftedTree, rng: Any) -> tuple[int, int]:
    """Try the children of a node in random order.

    Each that fails takes the draft's distribution off the target's. That distribution is taken as
    declared, however the children came about.
    """
    node = 0
    while True:
        waiting = drafted.children(node)
        p = drafted.p(node)
        accepted = None
        while waiting and accepted is None:
            child = waiting.pop(rng.categorical(np.ones(len(waiting))))
            assert drafted.draft is not None
            q = drafted.draft[drafted.tree.rows[node]]
            token = int(drafted.tree.tokens[child])
            if rng.bernoulli(min(1.0, float(p[token] / q[token]))):
                accepted = child
            else:
                left = np.maximum(p - q, 0.0)
                p = left / left.sum()
        if accepted is None:
            return node, rng.categorical(p)
        node = accepted
