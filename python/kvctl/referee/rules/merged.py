"""Descent through a tree whose equal siblings count as one place with several drafts behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...testing.distribution import Float64
from ...verification import DraftedTree

#: (target, draft distribution, drafted tokens, rng) -> the index of the accepted draft or None, and
#: the token instead of it.
Selection = Callable[[Float64, Float64, list[int], Any], tuple[int | None, int]]


def descend(drafted: DraftedTree, rng: Any, select: Selection) -> tuple[int, int]:
    """Run a rule for independent drafts of one token, token after token.

    Behind an accepted token, the drafts of all siblings that hold it are candidates: paths that
    agree so far are one path.

    Returns
    -------
    tuple
        The last accepted node, and the token behind it.
    """
    places, last = [0], 0
    while True:
        candidates = [child for place in places for child in drafted.children(place)]
        if not candidates:
            return last, rng.categorical(drafted.p(last))
        q = drafted.distribution_of(candidates[0])
        tokens = [int(drafted.tree.tokens[child]) for child in candidates]
        chosen, instead = select(drafted.p(last), q, tokens, rng)
        if chosen is None:
            return last, instead
        places = [c for c, token in zip(candidates, tokens, strict=True) if token == tokens[chosen]]
        last = candidates[chosen]
