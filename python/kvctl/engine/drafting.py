"""The drafter's side of a batch: what it starts, proposes, learns and forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..draft import Budget, Draft, RoundResult
from .grammar.masked_draft import FORCED, Freedom, mask_draft
from .loop_checks import check_drafts
from .rows import take_rows

if TYPE_CHECKING:
    from ..draft import Drafter
    from .decide import Decider
    from .grammar.bitmask import Words
    from .protocol import Runner
    from .text_state import TextState


@dataclass(eq=False)
class Share:
    """What one text has of a round: its draft, and the part of it that is verified."""

    text: TextState
    proposed: Draft
    #: The draft that is verified, which may have fewer nodes, and which of the proposed they are;
    #: `FORCED` for a token that the text's grammar leaves no choice of.
    draft: Draft
    nodes: Sequence[int]
    #: (nodes, W) what the text's grammar allows after each node that is verified.
    masks: Words | None = None
    #: How many nodes are certain to be accepted.
    sure: int = 0

    @classmethod
    def of(cls, text: TextState, proposed: Draft) -> Share:
        """Return the share that verifies all that was proposed."""
        return cls(text, proposed, proposed, range(len(proposed.tree)))

    def drop(self) -> None:
        """Verify nothing: a plain step."""
        if len(self.draft.tree) > 1:
            self.draft, self.nodes = Draft.nothing(self.text.tokens[-1]), range(1)
            self.masks = None if self.masks is None else self.masks[:1]

    def cut(self, count: int) -> None:
        """Verify only the `count` nodes of the best rates, and those that are sure."""
        draft, count = self.draft, max(count, self.sure)
        if count == 0:
            self.drop()
        elif draft.rates is not None and 1 + count < len(draft.tree):
            tree, nodes = draft.tree.prune(draft.rates, 1 + count)
            kept = nodes.tolist()
            self.nodes = [self.nodes[node] for node in kept]
            self.masks = None if self.masks is None else self.masks[kept]
            drawn = draft.drawn
            if not isinstance(drawn, str):
                drawn = [drawn[node] for node in kept]
            # Only rules that read no distributions verify a part of a tree that was drawn from one.
            self.draft = replace(
                draft, tree=tree, drawn=drawn, probs=None, probs_per_node=None, rates=None
            )


@dataclass(frozen=True)
class Outcome:
    """What became of a share."""

    share: Share
    #: Accepted nodes of the verified tree.
    path: list[int]
    emitted: list[int]
    kept: list[int]
    hidden: Any
    #: What follows each verified node; None unless the drafter wants it.
    logits: Any = None


class Drafting:
    """Asks a drafter for drafts, and keeps the contract between it and the loop.

    Without a drafter every draft is the root alone.
    """

    def __init__(
        self, runner: Runner, drafter: Drafter | None, budget: Budget, decider: Decider
    ) -> None:
        self._runner = runner
        self._drafter = drafter
        self._budget = budget
        self._follows = decider.follows_target
        self._certain = decider.certain
        self._slides = runner.sliding_window_size is not None
        self.layers = tuple(getattr(drafter, "hidden_layers", ()))
        self.wants_logits = bool(getattr(drafter, "wants_logits", False))
        if self.layers and "hidden" not in runner.abilities:
            raise ValueError(
                f"{type(drafter).__name__} wants hidden states of layers {self.layers}, and this "
                "runner gives none: 'hidden' is not among its abilities"
            )

    def start(self, text: TextState, hidden: Any) -> None:
        """Tell the drafter of a text that runs; `hidden` belongs to all its tokens but the last."""
        if self._drafter is None or text.finished is not None:
            return
        begin = perf_counter()
        text.drafted = True
        text.request.prompt_hidden = hidden
        self._drafter.start(text.request)
        text.request.prompt_hidden = None
        text.stats.start_seconds += perf_counter() - begin

    def finish(self, text: TextState) -> None:
        """Let the drafter forget a text, if it knows it."""
        if text.finished is not None:
            self._budget.finish(text.request.id)
        if self._drafter is not None and text.drafted:
            try:
                self._drafter.finish(text.request)
            except Exception:
                text.drafted = False
                raise
            text.drafted = False  # not where it was interrupted: the batch then calls it again

    def propose(self, texts: Sequence[TextState]) -> list[Share]:
        """Return the drafts of a round, each cut to what pays.

        Raises
        ------
        ValueError, TypeError
            If the drafter breaks its contract.
        """
        drafter = self._drafter
        requests = [text.request for text in texts]
        self._set_limits(texts)
        if drafter is None:
            shares = [Share.of(text, Draft.nothing(text.tokens[-1])) for text in texts]
        else:
            drafts = drafter.propose(requests, self._budget)
            check_drafts(drafter, drafts, requests, self._runner.vocab_size, cut=self._is_cut)
            shares = [Share.of(text, draft) for text, draft in zip(texts, drafts, strict=True)]
        for share in shares:
            self._mask(share)
        rates = [
            one.draft.rates[1:] if one.draft.rates is not None and self._is_cut(one.draft) else ()
            for one in shares
        ]
        if any(map(len, rates)):
            for share, mine, count in zip(
                shares, rates, self._budget.choose(requests, rates), strict=True
            ):
                if len(mine):
                    share.cut(count)
        return shares

    def observe(self, outcomes: Sequence[Outcome], rows: int, seconds: float) -> None:
        """Teach the drafter what became of its drafts."""
        if self._drafter is None:
            return
        results = []
        for one in outcomes:
            share = one.share
            # A drafter learns of forced tokens as of any that it did not draft.
            own = [row for row, node in enumerate(share.nodes) if node != FORCED]
            nodes = [share.nodes[row] for row in own]
            logits = one.logits
            if logits is not None and len(own) < len(share.nodes):
                logits = take_rows(logits, own)
            path = (share.nodes[node] for node in one.path)
            results.append(
                RoundResult(
                    request=share.text.request,
                    draft=share.proposed,
                    nodes=nodes,
                    accepted=[node for node in path if node != FORCED],
                    emitted=one.emitted,
                    kept=one.kept,
                    hidden=one.hidden,
                    rows=rows,
                    seconds=seconds,
                    finished=share.text.finished is not None,
                    logits=logits,
                )
            )
        self._drafter.observe(results)

    def _mask(self, share: Share) -> None:
        """Leave out what a text's grammar forbids, and add what it leaves no choice of."""
        text = share.text
        if text.grammar is None:
            return
        draft, named = share.draft, self._certain is not None
        masked = mask_draft(
            draft,
            text.grammar,
            text.request.limit,
            Freedom(
                choose=named and self._chooses(draft),
                # Without rates, a drafter that reads what follows its nodes wants all of them.
                whole=self.wants_logits and draft.rates is None,
                drawn=self._certain,
            ),
        )
        share.draft, share.nodes = masked.draft, masked.nodes
        share.masks, share.sure = masked.masks, masked.sure

    def _is_cut(self, draft: Draft) -> bool:
        """Return whether the loop may verify a part of a draft."""
        return draft.rates is not None and self._chooses(draft)

    def _chooses(self, draft: Draft) -> bool:
        """Return whether leaving out nodes by their value biases nothing."""
        return self._follows or draft.deterministic

    def _set_limits(self, texts: Sequence[TextState]) -> None:
        """Say how many nodes may be drafted for each text."""
        most = self._runner.prefill_chunk_size - 1
        if self._slides:
            # Pending rows evict no page; a plain step does, and the next round has room again.
            most = min(most, self._runner.cache.num_available_tokens // len(texts) - 1)
        elif len(texts) > 1:
            # A text may need a page of its own for a single row.
            most = min(most, self._runner.cache.num_available_tokens // len(texts))
        for text in texts:
            text.request.limit = max(0, min(text.room - 1, most))
