"""Drafting from a store of texts that all requests share."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np

from ...tree import TokenTree
from ..acceptance import Acceptance
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..lookup import LookupDrafter
from ..request import Request
from ..round_result import RoundResult
from .store import SuffixStore


class SuffixDrafter(Drafter):
    """What followed the text's longest suffix elsewhere, by frequency (arXiv 2411.04975).

    Two places are looked up: the text itself, as `LookupDrafter` does, and the store, which has
    the texts of other requests, earlier answers or a corpus. The draft that promises more is taken.
    A node's rate is the share of the occurrences that went on along its path, times how often, at
    that match length, any of them was right; the second factor is learnt.

    Parameters
    ----------
    store
        Shared with whom you like; by default one of its own.
    learn
        Whether texts are added to the store when they end, the prompt included.
    max_length
        The most nodes that a draft has.

    Raises
    ------
    ValueError
        If `max_length` is negative.

    Examples
    --------
    >>> drafter = kvctl.draft.SuffixDrafter(kvctl.draft.SuffixStore(100_000))
    >>> drafter.store.add([5, 6, 7, 8])  # from a corpus, or SuffixStore.load
    """

    def __init__(
        self, store: SuffixStore | None = None, *, learn: bool = True, max_length: int = 32
    ) -> None:
        if index(max_length) < 0:
            raise ValueError(f"max_length must not be negative, got {max_length}")
        self.store = SuffixStore() if store is None else store
        self.learn = learn
        self.max_length = max_length
        self.acceptance = Acceptance()
        self._own = LookupDrafter(max_length=max_length)
        self._found: dict[int, _Found] = {}

    def start(self, request: Request) -> None:
        """Index the prompt."""
        self._own.start(request)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft behind the last token of each text."""
        return [
            max(own, self._from_store(request), key=_promise)
            for request, own in zip(requests, self._own.propose(requests, budget), strict=True)
        ]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn from the round, and add texts that have ended to the store."""
        self._own.observe(results)
        for result in results:
            found = self._found.pop(result.request.id, None)
            if found is not None:
                for match_length, hit in found.trials(result.emitted):
                    self.acceptance.observe(match_length, 0, hit)
            if result.finished and self.learn:
                self.store.add(result.request.tokens)

    def finish(self, request: Request) -> None:
        """Forget a text that runs; the store keeps what it has."""
        self._own.finish(request)
        self._found.pop(request.id, None)

    def _from_store(self, request: Request) -> Draft:
        # At least one, even if it is not verified: acceptance is learnt from it too.
        depth = max(1, min(request.limit, self.max_length))
        found = self.store.continuations(
            list(request.tokens[-SuffixStore.MAX_MATCH :]), max_nodes=depth, max_depth=depth
        )
        if found.match_length == 0:
            return Draft.nothing(request.root)
        tree = TokenTree(found.tokens, found.parents)
        self._found[request.id] = _Found(tree, found.match_length)
        if request.limit == 0 or self.max_length == 0:
            return Draft.nothing(request.root)
        right = [1.0]
        for d in range(int(tree.depths.max())):
            right.append(right[d] * self.acceptance.rate(found.match_length + d))
        rates = found.shares * np.array(right)[tree.depths]
        return Draft(tree, rates=rates.tolist())


class _Found:
    """What the store had, whatever of it was verified."""

    def __init__(self, tree: TokenTree, match_length: int) -> None:
        self._tokens = tree.tokens.tolist()
        self._parents = tree.parents.tolist()
        self._match_length = match_length

    def trials(self, emitted: Sequence[int]) -> list[tuple[int, bool]]:
        """Return (match length, whether any node was right) of each depth that was tried."""
        children: dict[int, dict[int, int]] = {}
        for node in range(1, len(self._tokens)):
            children.setdefault(self._parents[node], {})[self._tokens[node]] = node
        tried, node = [], 0
        for depth, token in enumerate(emitted):
            if node not in children:
                break
            hit = token in children[node]
            tried.append((self._match_length + depth, hit))
            if not hit:
                break
            node = children[node][token]
        return tried


def _promise(draft: Draft) -> float:
    """Return how many drafted tokens are expected to be right."""
    return sum(draft.rates[1:]) if draft.rates is not None else 0.0
