"""Drafting without a second model: copy what followed the last time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index

import numpy as np

from .._core import NgramIndex
from ..tree import TokenTree
from .acceptance import Acceptance
from .adaptive import AdaptiveLength


class LookupDrafter:
    """Prompt lookup over an n-gram index of the text, prompt and output alike.

    By default each round drafts as much as promises the most tokens per second (see
    `AdaptiveLength`), which on a text that does not repeat itself is nothing. What it learnt of
    costs and acceptance stays for the next text.

    Parameters
    ----------
    length
        Draft always this many tokens ahead where there is a match (with branches, in up to twice
        as many nodes); by default the length adapts.
    max_length
        The most nodes that an adaptive draft has.
    branches
        Whether several continuations are merged into a tree, or only the best one is a chain.

    Raises
    ------
    ValueError
        If a length is negative.
    """

    def __init__(
        self, *, length: int | None = None, max_length: int = 16, branches: bool = True
    ) -> None:
        for name, value in (("length", length), ("max_length", max_length)):
            if value is not None and index(value) < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.length = length
        self.adaptive = AdaptiveLength(max_nodes=max_length)
        self.acceptance = Acceptance()
        self._branches = branches
        self._index = NgramIndex()
        self._draft = _Draft.nothing()
        self._rows = 1

    @property
    def drawn(self) -> str:
        """Copied tokens saw none of the verifier's random numbers."""
        return "deterministic"

    def start(self, tokens: Sequence[int], measure: Callable[[int], float]) -> None:
        """Index the prompt. Costs are learnt from the text's own rounds: nothing is measured."""
        self._index = NgramIndex()
        self._index.append(np.asarray(tokens, dtype=np.int32))
        if self.length is None:
            self.adaptive.start()

    def observe_prefill(self, rows: int, seconds: float) -> None:
        """Learn from the prefill what many rows cost here."""
        if self.length is None:
            self.adaptive.cost.observe_prefill(rows, seconds)

    def propose(self, limit: int) -> TokenTree:
        """Draft up to ``limit`` nodes behind the last token of the text."""
        depth = min(limit, self.adaptive.max_nodes if self.length is None else self.length)
        # At least one, even if it is not verified: acceptance is learnt from it too.
        depth = max(depth, 1)
        found = self._index.tree(2 * depth, depth) if self._branches else self._index.chain(depth)
        self._draft = draft = _Draft(*(values.tolist() for values in found))
        rates = self.acceptance.path_rates(draft.parents, draft.ranks, draft.match_lengths)
        if self.length is None:
            count = self.adaptive.choose(rates[1:], limit)
        else:
            count = min(limit, len(draft) - 1) if self.length > 0 else 0
        self._rows = 1 + count
        if count == 0:
            return TokenTree.chain(draft.tokens[:1])
        tree = TokenTree(found[0], found[1])
        return tree if count == len(draft) - 1 else tree.prune(rates, 1 + count)[0]

    def observe(self, emitted: Sequence[int], seconds: float) -> None:
        """Learn from the round, and append what it emitted to the text."""
        for rank, match_length, hit in self._draft.trials(emitted):
            self.acceptance.observe(match_length, rank, hit)
        if self.length is None:
            self.adaptive.observe(self._rows, len(emitted), seconds)
        self._index.append(np.asarray(emitted, dtype=np.int32))


class _Draft:
    """All tokens found; the round verifies all or a part of them."""

    def __init__(self, tokens: list[int], parents: list[int], match_lengths: list[int]) -> None:
        self.tokens = tokens
        self.parents = parents
        self.match_lengths = match_lengths
        self._children: list[list[int]] = [[] for _ in tokens]
        self.ranks = [0] * len(tokens)
        for node in range(1, len(tokens)):
            siblings = self._children[parents[node]]
            self.ranks[node] = len(siblings)
            siblings.append(node)

    @classmethod
    def nothing(cls) -> _Draft:
        return cls([], [], [])

    def __len__(self) -> int:
        return len(self.tokens)

    def trials(self, emitted: Sequence[int]) -> list[tuple[int, int, bool]]:
        """Return (rank, match length, right or not) of each node that the emitted tokens tried."""
        tried = []
        node: int | None = 0
        for token in emitted:
            if node is None or node >= len(self):
                break
            following = None
            for child in self._children[node]:
                hit = self.tokens[child] == token
                tried.append((self.ranks[child], self.match_lengths[child], hit))
                following = child if hit else following
            node = following
        return tried
