"""Drafting with heads that guess several tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import to_host
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..identity import identity_of
from ..model.confidence import Confidence
from ..model.pays import DraftingPays
from ..request import Request
from ..round_result import RoundResult
from ..top_tokens import probabilities, top_tokens
from ..trees import best_first
from .protocols import MarginalHead


class MedusaDrafter(Drafter):
    """Heads guess the tokens behind the next one, independently of each other (arXiv 2401.10774).

    Of the candidates of all heads the tree of the most probable paths is drafted
    (`kvctl.draft.trees.best_first`), and the loop verifies the part of it that pays. Drafts are
    chosen by value, so they are ``deterministic`` for every rule.

    Parameters
    ----------
    head
        See `MarginalHead`; ``kvctl.heads`` loads published ones.
    candidates
        Tokens of each head that paths are made of.
    nodes
        The most nodes of a tree.
    adapt
        Go without drafts where the heads' own time does not pay. Otherwise they are asked in every
        round.

    Raises
    ------
    ValueError
        If a size is less than 1.
    """

    costs_time = True

    def __init__(
        self, head: MarginalHead, *, candidates: int = 8, nodes: int = 24, adapt: bool = True
    ) -> None:
        for name, value in (("candidates", candidates), ("nodes", nodes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.hidden_layers = tuple(head.hidden_layers)
        self.identity = identity_of(head)
        self._head, self._candidates, self._nodes = head, candidates, nodes
        self._adapts, self._pays = adapt, DraftingPays()
        self._last: dict[int, npt.NDArray[Any]] = {}  # the hidden states that roots came from
        self._offered: dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        self._confidence: list[Confidence] = []

    def start(self, request: Request) -> None:
        """Remember what the root came from."""
        self._last[request.id] = _last_row(request.prompt_hidden)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft the most probable paths."""
        self._offered = {}
        able = [request for request in requests if request.limit > 0]
        if able and (not self._adapts or self._pays.worthwhile(budget, requests)):
            begin = perf_counter()
            self._offer(able)
            self._pays.observe_catch_up(perf_counter() - begin)
        return [self._draft(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn how often candidates were right, and remember what the new roots came from."""
        self._pays.observe_round(results)
        for result in results:
            self._last[result.request.id] = _last_row(result.hidden)
            offered = self._offered.pop(result.request.id, None)
            if offered is None:
                continue
            for depth, emitted in enumerate(result.emitted[: len(self._confidence)]):
                for token, share in zip(offered[0][depth], offered[1][depth], strict=True):
                    self._confidence[depth].observe(float(share), int(token) == emitted)

    def finish(self, request: Request) -> None:
        """Forget a text."""
        self._last.pop(request.id, None)
        self._offered.pop(request.id, None)

    def _offer(self, requests: Sequence[Request]) -> None:
        """Find the candidates of each head and their probabilities."""
        logits = self._head.logits(np.stack([self._last[request.id] for request in requests]))
        count, depth, vocab = logits.shape
        rows = logits.reshape(count * depth, vocab)
        tokens = top_tokens(rows, min(self._candidates, vocab))
        shares = probabilities(rows, tokens)
        while len(self._confidence) < depth:
            self._confidence.append(Confidence())
        for i, request in enumerate(requests):
            mine = slice(i * depth, (i + 1) * depth)
            self._offered[request.id] = tokens[mine], shares[mine]

    def _draft(self, request: Request) -> Draft:
        if request.id not in self._offered:
            return Draft.nothing(request.root)
        tokens, shares = self._offered[request.id]
        rates = np.array(
            [
                [known.rate(float(share)) for share in row]
                for known, row in zip(self._confidence, shares, strict=False)
            ]
        )
        rates /= np.maximum(rates.sum(axis=1, keepdims=True) * (1 + 1e-9), 1.0)
        nodes = self._nodes
        grown = best_first(rates, nodes, root=request.root, tokens=tokens)
        return Draft(grown.tree, rates=grown.rates.tolist())


def _last_row(hidden: Any) -> npt.NDArray[Any]:
    """Return a copy of the last of hidden states (n, layers, width)."""
    return np.array(to_host(hidden)[-1])
