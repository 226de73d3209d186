"""Drafting with a model of any vocabulary, through text."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from operator import index
from time import perf_counter
from typing import Any

import numpy as np

from ...tree import TokenTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..identity import identity_of
from ..request import Request
from ..round_result import RoundResult
from .confidence import Confidence
from .draft_sequences import DraftSequences
from .pays import DraftingPays
from .runner import DraftRunner
from .spelled_text import SpelledText
from .string_map import StringMap


@dataclass(eq=False)
class _Text:
    """One text: how it is spelled, and what the draft model's cache has of it."""

    spelled: SpelledText
    committed: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    #: This round's draft: tokens of the draft model, and its probability of each.
    drafted: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    #: The draft in the target's tokens, with the probability of each.
    chain: list[tuple[int, float]] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a round without a draft."""
        self.pending, self.drafted, self.shares, self.chain = [], [], [], []


class StringDrafter(Drafter):
    """A model of another vocabulary drafts text, which the target's tokenizer splits anew.

    This is string-level exact match (SLEM, arXiv 2502.05202; "universal assisted generation" in
    transformers). It works for any two tokenizers. Where the vocabularies share most tokens,
    `ModelDrafter` with a `VocabularyMap` drafts trees and distributions; this one drafts a chain of
    the most likely tokens.

    Drafts are deterministic, so every rule that takes such drafts keeps its promise, whatever the
    two tokenizers make of a text; the others refuse them. There is no distribution over the
    target's tokens to hand over, since many texts of the draft model become the same tokens: to
    draw at random would gain nothing.

    The draft model reads the text in its own spelling. Where more text changes how the end of it is
    spelled, the cache goes back to the last token that stays: after each round it holds what a
    prefill of those tokens would.

    Parameters
    ----------
    runner
        The draft model, any `kvctl.engine.Runner` but the target's, on a cache of its own.
    strings
        The tokenizers: ``StringMap(draft.text.tokenizer, target.text.tokenizer)``.
    length
        How many of its tokens the draft model drafts, always; all that they become is verified. By
        default at most `max_length`: the loop verifies what pays, and where drafting does not pay
        at all, most rounds go without it.
    max_length
        The most where `length` is not given.

    Raises
    ------
    ValueError
        If a length is negative, or the tokenizer is not of this model.

    Examples
    --------
    >>> strings = kvctl.draft.StringMap(draft.text.tokenizer, target.text.tokenizer)
    >>> drafter = kvctl.draft.StringDrafter(draft, strings, length=6)
    """

    costs_time = True

    def __init__(
        self,
        runner: DraftRunner,
        strings: StringMap,
        *,
        length: int | None = None,
        max_length: int = 8,
    ) -> None:
        for name, value in (("length", length), ("max_length", max_length)):
            if value is not None and index(value) < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if strings.draft_size > runner.vocab_size:
            raise ValueError(
                f"the draft model's tokenizer has {strings.draft_size} tokens, and the model "
                f"{runner.vocab_size}"
            )
        self.length = length
        self.depth = max_length if length is None else length
        self.confidence = Confidence()
        self.identity = identity_of(runner)
        self._runner = runner
        self._strings = strings
        self._sequences = DraftSequences(runner)
        self._pays = DraftingPays()
        self._texts: dict[int, _Text] = {}

    def start(self, request: Request) -> None:
        """Begin a text; the model reads it with the first draft."""
        self._texts[request.id] = _Text(SpelledText(self._strings))

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Let the model write on, and split what it wrote into the target's tokens."""
        self._sequences.drop_pending(requests)
        for request in requests:
            self._texts[request.id].begin()
        if self.length is not None or self._pays.worthwhile(budget, requests):
            able = [request for request in requests if request.limit > 0 and self.depth > 0]
            self._write(able)
        return [self._draft(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Go back to what stays of the draft model's tokens, and learn from the round."""
        for result in results:
            text = self._texts[result.request.id]
            for (token, share), emitted in zip(text.chain, result.emitted, strict=False):
                self.confidence.observe(share, token == emitted)
                if token != emitted:
                    break
            if text.drafted:
                text.spelled.extend(result.request.tokens)
                self._step_back(result.request, text.spelled.tokens())
        self._pays.observe_round(results)

    def finish(self, request: Request) -> None:
        """Forget a text."""
        self._texts.pop(request.id, None)
        self._sequences.finish(request)

    def _write(self, requests: Sequence[Request]) -> None:
        """Draft for some texts together."""
        own = []
        for request in requests:
            text = self._texts[request.id]
            text.spelled.extend(request.tokens)
            tokens = text.spelled.tokens()
            self._step_back(request, tokens)
            if tokens:
                own.append(copy(request))
                own[-1].tokens = tokens
        begin = perf_counter()
        rows = self._sequences.catch_up(own)
        read = all(self._texts[id].committed for id in rows)
        self._pays.observe_catch_up(perf_counter() - begin, counts=read)
        active = [request for request in own if request.id in rows]
        for request in own:
            if request.id in rows:
                self._texts[request.id].committed = list(request.tokens)
            elif request not in self._sequences:
                self._texts[request.id].committed = []
        logits = [rows[request.id] for request in active]
        for depth in range(1, self.depth + 1):
            writing = []
            for request, row in zip(active, logits, strict=True):
                room = self._sequences.depth_room(request)
                if self._add(self._texts[request.id], row) and (room is None or depth <= room):
                    writing.append(request)
            active = writing
            if not active or depth == self.depth:
                return
            begin = perf_counter()
            grown = self._sequences.grow(
                [self._sequences.id_of(request) for request in active],
                [[self._texts[request.id].drafted[-1]] for request in active],
                [[depth - 2]] * len(active),
            )
            if grown is None:
                return
            self._pays.observe_level(perf_counter() - begin)
            for request in active:
                text = self._texts[request.id]
                text.pending.append(text.drafted[-1])
            logits = list(grown)

    def _add(self, text: _Text, row: Any) -> bool:
        """Add the most likely token to a draft; return whether it has a text."""
        token = int(row.argmax())
        if not self._strings.draft_bytes(token):
            return False
        text.drafted.append(token)
        text.shares.append(float(1.0 / np.exp(row - row[token], dtype=np.float64).sum()))
        return True

    def _draft(self, request: Request) -> Draft:
        """Return a text's draft in the target's tokens."""
        text = self._texts[request.id]
        contents = [self._strings.draft_bytes(token) or b"" for token in text.drafted]
        pending = text.spelled.pending
        tokens = self._strings.to_target(request.tokens, pending, b"".join(contents))
        # Places count from the first byte that is drafted anew; `pending` lies before it.
        begin, at, ends, written = -len(pending), 0, [], -len(pending)
        for content in contents:
            written += len(content)
            ends.append(written)
        for token in tokens[: request.limit]:
            at += len(self._strings.target_bytes(token) or b"")
            # A token is as likely as those that end with or within it.
            inside = [
                share for end, share in zip(ends, text.shares, strict=True) if begin < end <= at
            ]
            begin = at
            text.chain.append((token, float(np.prod(inside))))
        if not text.chain:
            return Draft.nothing(request.root)
        rates = [1.0]
        for _, share in text.chain:
            rates.append(rates[-1] * self.confidence.rate(share))
        chain = TokenTree.chain([request.root, *(token for token, _ in text.chain)])
        return Draft(chain, rates=rates if self.length is None else None)

    def _step_back(self, request: Request, tokens: Sequence[int]) -> None:
        """Keep of a text's sequence what it has in common with the text as it is spelled now."""
        text = self._texts[request.id]
        if request not in self._sequences:
            text.committed, text.pending = [], []
            return
        held = text.committed + text.pending
        same = next(
            (i for i, (a, b) in enumerate(zip(held, tokens, strict=False)) if a != b),
            min(len(held), len(tokens)),
        )
        id, known = self._sequences.id_of(request), len(text.committed)
        self._sequences.keep({id: list(range(max(0, same - known)))})
        if same < known:
            self._runner.cache.popn(id, known - same)
        text.committed, text.pending = held[:same], []
