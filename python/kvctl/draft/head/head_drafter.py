"""Drafting with a head that reads the target's features, and then its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import index

from ...verification import Sampling
from ..budget import Budget
from ..draft import Draft
from ..identity import identity_of
from ..model.growing_drafter import GrowingDrafter
from ..opinion import OfNodes
from ..request import Request
from ..round_result import RoundResult
from ..trees import rerank
from .protocols import FeatureHead
from .sequences import HeadSequences


class HeadDrafter(GrowingDrafter):
    """A head over the target's hidden states drafts, as EAGLE does (arXiv 2401.15077, 2503.01840).

    The head forwards the feature that the target gave for a position together with the token that
    came behind it, and says the next feature and the token after. A tree is grown level by level,
    with the head's own features for drafted tokens. After verification the target's features take
    their place, so that the head's cache holds what a prefill of the text would.

    ``branching=8, beam=8, nodes=24`` is EAGLE-2's dynamic tree (arXiv 2406.16858): the 8 best nodes
    of a level are extended by 8 candidates each, and the 24 best of all candidates are verified.

    Parameters
    ----------
    head
        See `FeatureHead`; ``kvctl.heads`` loads published ones.
    length, max_length, branching, beam, how, sampling
        See `ModelDrafter`.
    nodes
        Verify at most so many nodes, those of the best paths. For deterministic drafts. With a
        given `length` all of them are verified, else those that pay.

    Raises
    ------
    ValueError
        If a size is out of range, `how` is unknown, or `beam` or `nodes` goes with random draws.

    Examples
    --------
    >>> head = kvctl.heads.load("build/heads/smollm2_eagle3")
    >>> kvctl.generate(runner, prompt, drafter=kvctl.draft.HeadDrafter(head))
    """

    def __init__(
        self,
        head: FeatureHead,
        *,
        length: int | None = None,
        max_length: int = 6,
        branching: int | Sequence[int] = 1,
        beam: int | None = None,
        nodes: int | None = None,
        how: str = "deterministic",
        sampling: Sampling | None = None,
    ) -> None:
        if nodes is not None and index(nodes) < 1:
            raise ValueError(f"nodes must be at least 1, got {nodes}")
        if nodes is not None and how != "deterministic":
            raise ValueError(
                "the best nodes of a tree are chosen by their value, which biases random draws; "
                f"use how='deterministic' with nodes, not {how!r}"
            )
        self._nodes = nodes
        self._heads = HeadSequences(head)
        self.hidden_layers = tuple(head.hidden_layers)
        self.identity = identity_of(head)
        super().__init__(
            self._heads,
            head,
            length=length,
            max_length=max_length,
            branching=branching,
            beam=beam,
            how=how,
            sampling=sampling,
            vocabulary=head.vocabulary,
        )

    def start(self, request: Request) -> None:
        """Begin a text; the head reads it with the first draft."""
        self._heads.start(request)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Grow a tree for each text, and choose its best nodes."""
        drafts = super().propose(requests, budget)
        if self._nodes is None:
            return drafts
        return [self._best(draft, one.limit) for draft, one in zip(drafts, requests, strict=True)]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Take the target's features of what was accepted."""
        super().observe(results)
        for result in results:
            if not result.finished:
                self._heads.extend(result.request, result.emitted, result.hidden)

    def _best(self, draft: Draft, limit: int) -> Draft:
        """Return the best nodes of a draft."""
        assert self._nodes is not None
        if draft.rates is None:
            return draft
        most = self._nodes if self.length is None else min(self._nodes, limit)
        if len(draft.tree) > 1 + most:
            best = rerank(draft.tree, draft.rates, most)
            opinion = draft.opinion
            if opinion is not None and best.nodes is not None:
                opinion = OfNodes(opinion, best.nodes.tolist())
            draft = replace(draft, tree=best.tree, rates=best.rates.tolist(), opinion=opinion)
        return draft if self.length is None else replace(draft, rates=None)

    @property
    def _is_cut(self) -> bool:
        return super()._is_cut or self._nodes is not None
