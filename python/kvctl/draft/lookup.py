"""Drafting without a second model: copy what followed the last time."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np

from .._core import NgramIndex
from ..tree import TokenTree
from .acceptance import Acceptance
from .budget import Budget
from .draft import Draft
from .drafter import Drafter
from .likely import likely_nodes
from .request import Request
from .round_result import RoundResult


class LookupDrafter(Drafter):
    """Prompt lookup over an n-gram index of the text, prompt and output alike.

    By default each round drafts as much as promises the most tokens per second (see
    `Budget`), which on a text that does not repeat itself is nothing. What it learnt of acceptance
    stays for the next text.

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
        self.max_length = max_length
        self.acceptance = Acceptance()
        self._branches = branches
        self._indices: dict[int, NgramIndex] = {}
        self._found: dict[int, _Found] = {}

    def start(self, request: Request) -> None:
        """Index the prompt."""
        self._indices[request.id] = found = NgramIndex()
        found.append(np.asarray(request.tokens, dtype=np.int32))

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft behind the last token of each text."""
        return [self._propose(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn from the round, and append what it emitted to the texts."""
        for result in results:
            id, emitted = result.request.id, result.emitted
            for rank, match_length, hit in self._found[id].trials(emitted):
                self.acceptance.observe(match_length, rank, hit)
            self._indices[id].append(np.asarray(emitted, dtype=np.int32))

    def finish(self, request: Request) -> None:
        """Forget the index of a text."""
        self._indices.pop(request.id, None)
        self._found.pop(request.id, None)

    def _propose(self, request: Request) -> Draft:
        depth = min(request.limit, self.max_length if self.length is None else self.length)
        # At least one, even if it is not verified: acceptance is learnt from it too.
        depth = max(depth, 1)
        indexed = self._indices[request.id]
        arrays = indexed.tree(2 * depth, depth) if self._branches else indexed.chain(depth)
        self._found[request.id] = found = _Found(*(values.tolist() for values in arrays))
        nodes = len(found) - 1
        most = min(request.limit, self.max_length if self.length is None else nodes)
        if nodes == 0 or most == 0 or self.length == 0:
            return Draft.nothing(found.tokens[0])
        rates = self.acceptance.path_rates(found.parents, found.ranks, found.match_lengths)
        if self.length is None:
            tokens, parents, rates = likely_nodes(found.tokens, found.parents, rates, most)
            return Draft(TokenTree(tokens, parents), rates=rates)
        tree = TokenTree(arrays[0], arrays[1])
        return Draft(tree if nodes <= most else tree.prune(rates, 1 + most)[0])


class _Found:
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
