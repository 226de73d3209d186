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
from ..likely import likely_nodes
from ..lookup import LookupDrafter
from ..request import Request
from ..round_result import RoundResult
from .store import Continuations, SuffixStore


class SuffixDrafter(Drafter):
    """What followed the text's longest suffix elsewhere, by frequency (arXiv 2411.04975).

    Two places are looked up: the text itself, as `LookupDrafter` does, and the store, which has
    the texts of other requests, earlier answers or a corpus. The draft that promises more is taken.
    A node's rate is the share of the occurrences that went on along its path, times how often, at
    that match length, any of them was right; the second factor is learnt. Matches that reach back
    into the prompt have one of their own: prompts end alike, as a chat template ends them, and
    answers that begin behind the same words need not.

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
        self._behind_prompts = Acceptance()
        self._own = LookupDrafter(max_length=max_length)
        self._found: dict[int, _Found] = {}

    def start(self, request: Request) -> None:
        """Index the prompt."""
        self._own.start(request)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft behind the last token of each text."""
        return [
            self._better(request, own)
            for request, own in zip(requests, self._own.propose(requests, budget), strict=True)
        ]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn from the round, and add texts that have ended to the store."""
        self._own.observe(results)
        for result in results:
            found = self._found.pop(result.request.id, None)
            if found is not None:
                for match_length, hit in found.trials(result.emitted):
                    found.acceptance.observe(match_length, 0, hit)
            if result.finished and self.learn:
                self.store.add(result.request.tokens)

    def finish(self, request: Request) -> None:
        """Forget a text that runs; the store keeps what it has."""
        self._own.finish(request)
        self._found.pop(request.id, None)

    def _better(self, request: Request, own: Draft) -> Draft:
        """Return the draft that promises more: the text's own one, or the store's."""
        # At least one, even if it is not verified: acceptance is learnt from it too.
        depth = max(1, min(request.limit, self.max_length))
        context = np.array(request.tokens[-SuffixStore.MAX_MATCH :], np.int32)
        found = self.store.continuations(context, max_nodes=depth, max_depth=depth)
        if found.match_length == 0:
            return own
        within = found.match_length <= len(request.tokens) - request.prompt_length
        acceptance = self.acceptance if within else self._behind_prompts
        self._found[request.id] = mine = _Found(found, acceptance)
        if request.limit == 0 or self.max_length == 0:
            return own
        rates = mine.rates(found.shares.tolist())
        if own.rates is not None and sum(own.rates[1:]) >= sum(rates[1:]):
            return own
        tokens, parents, rates = likely_nodes(mine.tokens, mine.parents, rates, depth)
        return Draft(TokenTree(tokens, parents), rates=rates)


class _Found:
    """What the store had, whatever of it was verified, and where to learn how often it is right."""

    def __init__(self, found: Continuations, acceptance: Acceptance) -> None:
        self.tokens = found.tokens.tolist()
        self.parents = found.parents.tolist()
        self._match_length = found.match_length
        self.acceptance = acceptance

    def rates(self, shares: Sequence[float]) -> list[float]:
        """Return the probability of each node's path, of which so large a part went on there."""
        depths, right = [0], [1.0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        for depth in range(max(depths)):
            right.append(right[depth] * self.acceptance.rate(self._match_length + depth))
        return [share * right[depth] for share, depth in zip(shares, depths, strict=True)]

    def trials(self, emitted: Sequence[int]) -> list[tuple[int, bool]]:
        """Return (match length, whether any node was right) of each depth that was tried."""
        children: dict[int, dict[int, int]] = {}
        for node in range(1, len(self.tokens)):
            children.setdefault(self.parents[node], {})[self.tokens[node]] = node
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
