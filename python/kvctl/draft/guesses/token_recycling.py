"""Drafting with the tokens that the target almost took, the last time it was here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import index

import numpy as np
import numpy.typing as npt

from ...tree import TokenTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from ..round_result import RoundResult
from ..top_tokens import top_tokens
from ..trees import StaticTree, optimal_static

# What is believed of a node's children before anything was seen, and how many trials it is worth.
_PRIOR = 0.4 * 0.5 ** np.arange(16)
_PRIOR_TRIALS = 20.0
_KEEP = 0.998  # old trials fade
_ROUNDS_PER_SHAPE = 32
_MAX_DEPTH = 12


class TokenRecyclingDrafter(Drafter):
    """Every token's most likely successors, as the target last saw them (arXiv 2408.08696).

    Each verified row, also one of a rejected draft, says which tokens were most likely after its
    token. They are kept in one matrix of all tokens, and a draft is a tree over it: the candidates
    after the root, after each of them, and so on. No text is searched and no model is run.

    How often the candidate of each rank is right is learnt, and the tree has the shape that is best
    for these rates (`kvctl.draft.trees.optimal_static`). All texts share the matrix; it stays for
    the next ones.

    Parameters
    ----------
    candidates
        Successors that are kept of a token, at most 16.
    nodes
        The most drafted nodes.

    Raises
    ------
    ValueError
        If `candidates` is not in [1, 16] or `nodes` is negative.

    Examples
    --------
    >>> drafter = kvctl.draft.TokenRecyclingDrafter(candidates=4, nodes=16)
    """

    wants_logits = True

    def __init__(self, *, candidates: int = 8, nodes: int = 48) -> None:
        if not 1 <= index(candidates) <= len(_PRIOR):
            raise ValueError(f"candidates must be in [1, {len(_PRIOR)}], got {candidates}")
        if index(nodes) < 0:
            raise ValueError(f"nodes must not be negative, got {nodes}")
        self.candidates = candidates
        self.nodes = nodes
        self._successors: npt.NDArray[np.int32] | None = None  # (V, candidates), -1: not seen yet
        self._trials = 0.0
        self._hits = np.zeros(candidates)
        self._rounds = 0
        self._shape: StaticTree | None = None

    @property
    def acceptance(self) -> npt.NDArray[np.float64]:
        """(candidates,) the estimated probability that the candidate of each rank is right."""
        prior = _PRIOR[: self.candidates] * _PRIOR_TRIALS
        return np.asarray((self._hits + prior) / (self._trials + _PRIOR_TRIALS))

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft a tree over the matrix for each text."""
        return [self._propose(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn how often ranks are right, then what follows the verified tokens."""
        for result in results:
            self._learn_ranks(result)
        for result in results:
            tops = top_tokens(result.logits, self.candidates)
            if self._successors is None:
                vocab = int(result.logits.shape[1])
                self._successors = np.full((vocab, self.candidates), -1, np.int32)
            # The last one counts where a token was verified more than once.
            self._successors[result.draft.tree.tokens[list(result.nodes)]] = tops
        self._rounds += 1
        if self._rounds % _ROUNDS_PER_SHAPE == 0:
            self._shape = None

    def _propose(self, request: Request) -> Draft:
        if self._successors is None or request.limit == 0 or self.nodes == 0:
            return Draft.nothing(request.root)
        if self._shape is None:
            self._shape = optimal_static(self.acceptance, None, self.nodes, max_depth=_MAX_DEPTH)
        shape = self._shape  # perhaps larger than the limit: the loop takes the best part
        tokens, parents, rates = [request.root], [-1], [1.0]
        places = [0] * len(shape)
        ranks, above, expected = shape.ranks.tolist(), shape.parents.tolist(), shape.rates.tolist()
        for node in range(1, len(shape)):
            parent = places[above[node]]
            token = -1 if parent < 0 else int(self._successors[tokens[parent], ranks[node]])
            places[node] = -1 if token < 0 else len(tokens)
            if token >= 0:
                tokens.append(token)
                parents.append(parent)
                rates.append(expected[node])
        return Draft(TokenTree(tokens, parents), rates=rates)

    def _learn_ranks(self, result: RoundResult) -> None:
        """Count which candidate was right after each token of the path, verified or not."""
        if self._successors is None:
            return
        path = [result.request.tokens[-len(result.emitted) - 1], *result.emitted]
        for token, following in pairwise(path):
            known = self._successors[token]
            if known[0] < 0:
                continue
            self._trials = _KEEP * self._trials + 1.0
            self._hits *= _KEEP
            self._hits[known == following] += 1.0
