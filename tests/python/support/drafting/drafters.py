"""A drafter of each family, made for prompts and the texts that follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvctl.draft import (
    Drafter,
    JacobiDrafter,
    LookaheadDrafter,
    LookupDrafter,
    ScriptedDrafter,
    SuffixDrafter,
    SuffixStore,
    SyntheticDrafter,
    TokenRecyclingDrafter,
)

Texts = Sequence[Sequence[int]]


class Always(Drafter):
    """What a drafter drafts, without rates: verified whatever rounds cost, as far as it may be."""

    def __init__(self, drafter):
        self._drafter = drafter
        self.hidden_layers = drafter.hidden_layers
        self.wants_logits = drafter.wants_logits

    def start(self, request):
        self._drafter.start(request)

    def propose(self, requests, budget):
        drafts = []
        for request, draft in zip(requests, self._drafter.propose(requests, budget), strict=True):
            tree = draft.tree
            if draft.rates is not None and len(tree) > 1 + request.limit:
                tree = tree.prune(draft.rates, 1 + request.limit)[0]
            drafts.append(replace(draft, tree=tree, rates=None))
        return drafts

    def observe(self, results):
        self._drafter.observe(results)

    def finish(self, request):
        self._drafter.finish(request)


def suffix(prompts: Texts, texts: Texts) -> Drafter:
    """Return a suffix drafter whose store has answers that go wrong after some tokens."""
    store = SuffixStore(100_000)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        store.add([*prompt, *text[: 4 + i % 5], 1, 2])
    return Always(SuffixDrafter(store))


DRAFTERS: dict[str, Callable[[Texts, Texts], Drafter]] = {
    "lookup": lambda prompts, texts: LookupDrafter(length=5),
    "suffix": suffix,
    "token_recycling": lambda prompts, texts: Always(TokenRecyclingDrafter(nodes=20)),
    "jacobi": lambda prompts, texts: JacobiDrafter(length=5),
    "lookahead": lambda prompts, texts: LookaheadDrafter(window=4, n=3, guesses=4),
    "scripted": lambda prompts, texts: ScriptedDrafter(texts, length=6),
    "synthetic": lambda prompts, texts: SyntheticDrafter([0.9, 0.7, 0.5], answers=texts),
    "mixed": lambda prompts, texts: (
        LookupDrafter(length=4)
        | suffix(prompts, texts)
        | SyntheticDrafter([0.5, 0.5, 0.5], answers=texts)
    ),
}
