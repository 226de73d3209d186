"""A tree that a draft model grows level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...tree import TokenTree
from ..draft import Draft
from ..request import Request
from .draft_vocabulary import DraftVocabulary


class GrowingTree:
    """The nodes so far, which of them the draft model has forwarded, and what it said there.

    Attributes
    ----------
    request : Request
        The text that it is drafted for.
    frontier : list of int
        The nodes to extend next, the root at first.
    logits : numpy.ndarray
        (len(frontier), V), what the draft model says after them.
    tokens, parents, probabilities, rates
        Of each node: the token, the parent, the draft model's probability of it, and the
        probability that its path is accepted.
    """

    def __init__(
        self,
        request: Request,
        logits: npt.NDArray[Any],
        vocabulary: DraftVocabulary | None = None,
    ) -> None:
        self.request = request
        self.tokens = [int(request.root)]
        self.parents = [-1]
        self.probabilities = [1.0]
        self.rates = [1.0]
        self.frontier = [0]
        self.logits = logits
        self._vocabulary = vocabulary
        # What the draft model said after each node that has children: its logits, and the logarithm
        # of the sum of their exponentials.
        self._said: dict[int, tuple[npt.NDArray[Any], float]] = {}
        self._draws = 1  # a draw is named as the node that it would be if every one made a node
        self._forwarded: dict[int, int] = {}  # pending rows of the draft cache, by node
        self._distributions: dict[int, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, probability: float, rate: float) -> int:
        """Add a node, and return it; `rate` is that of the node alone."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.probabilities.append(probability)
        self.rates.append(self.rates[parent] * rate)
        return len(self.tokens) - 1

    def said(self, node: int, logits: npt.NDArray[Any], token: int, probability: float) -> None:
        """Remember what the draft model said after a node, for `probability`.

        Parameters
        ----------
        node
            The node.
        logits
            (V,), which must not change while the tree lives.
        token, probability
            The likeliest token, in the model's own vocabulary, and how likely it is.
        """
        self._said[node] = logits, float(logits[token]) - math.log(probability)

    def probability(self, node: int, token: int) -> float | None:
        """Return the draft model's probability of a token of the target after a node.

        It is None where the node was not extended, or where the model does not know the token.
        """
        if node not in self._said:
            return None
        own = token if self._vocabulary is None else self._vocabulary.own(token)
        logits, total = self._said[node]
        if own is None or not 0 <= own < len(logits):
            return None
        return min(math.exp(float(logits[own]) - total), 1.0)  # rounding may exceed it

    def next_draws(self, width: int) -> list[int]:
        """Name `width` draws from each node of the frontier: the first of each; none comes twice.

        A row whose support is exhausted makes fewer nodes than draws. The nodes alone would name
        later draws by numbers that have drawn already, and draws that share them are not
        independent.
        """
        first, count = self._draws, len(self.frontier)
        self._draws += count * width
        return [first + i * width for i in range(count)]

    def drawn_from(self, node: int, distribution: npt.NDArray[Any]) -> None:
        """Remember the distribution that the children of a node were drawn from."""
        self._distributions[node] = distribution

    def pending_parents(self) -> list[int]:
        """Return the parents of the frontier among the forwarded nodes; -1 is the root."""
        return [self._forwarded.get(self.parents[node], -1) for node in self.frontier]

    def forwarded(self, logits: npt.NDArray[Any]) -> None:
        """Take what the draft model said after the frontier."""
        for node in self.frontier:
            self._forwarded[node] = len(self._forwarded)
        self.logits = logits

    def kept_rows(self, accepted: Sequence[int]) -> list[int]:
        """Return the pending rows of accepted nodes: of the first ones, those forwarded."""
        return [self._forwarded[node] for node in accepted if node in self._forwarded]

    def draft(self, drawn: str, *, rated: bool) -> Draft:
        """Return the tree, with what a rule must know of it or, if `rated`, its rates."""
        tree = TokenTree(self.tokens, self.parents)
        if drawn == "deterministic":
            return Draft(tree, rates=self.rates if rated else None, opinion=self)
        if not self._distributions:
            return Draft(tree)
        some = next(iter(self._distributions.values()))
        probs = np.zeros((tree.num_rows, len(some)), some.dtype)
        for node, distribution in self._distributions.items():
            probs[tree.rows[node]] = distribution
        return Draft(tree, drawn=drawn, probs=probs)

    def trials(self, emitted: Sequence[int]) -> list[list[tuple[float, bool]]]:
        """Return (probability, right or not) of each node that the emitted tokens tried, by level.

        The last level may have no right one.
        """
        children: dict[int, list[int]] = {}
        for node in range(1, len(self)):
            children.setdefault(self.parents[node], []).append(node)
        levels, at = [], 0
        for token in emitted:
            if at not in children:
                break
            levels.append(
                [(self.probabilities[node], self.tokens[node] == token) for node in children[at]]
            )
            right = [node for node in children[at] if self.tokens[node] == token]
            if not right:
                break
            at = right[-1]
        return levels
