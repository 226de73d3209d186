"""A drafter of each family, made for prompts and the texts that follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fake_heads import ToldHead, ToldMedusa
from kvctl.draft import (
    Drafter,
    HeadDrafter,
    JacobiDrafter,
    LookaheadDrafter,
    LookupDrafter,
    MedusaDrafter,
    ScriptedDrafter,
    SuffixDrafter,
    SuffixStore,
    SyntheticDrafter,
    TokenRecyclingDrafter,
)

Texts = Sequence[Sequence[int]]


class Around(Drafter):
    """A drafter around another one, which it asks for everything."""

    def __init__(self, drafter):
        self.drafter = drafter
        self.hidden_layers = drafter.hidden_layers
        self.wants_logits = drafter.wants_logits

    def start(self, request):
        self.drafter.start(request)

    def propose(self, requests, budget):
        return self.drafter.propose(requests, budget)

    def observe(self, results):
        self.drafter.observe(results)

    def finish(self, request):
        self.drafter.finish(request)


class Always(Around):
    """What a drafter drafts, without rates: verified whatever rounds cost, as far as it may be."""

    def propose(self, requests, budget):
        drafts = []
        for request, draft in zip(requests, super().propose(requests, budget), strict=True):
            tree = draft.tree
            if draft.rates is not None and len(tree) > 1 + request.limit:
                tree = tree.prune(draft.rates, 1 + request.limit)[0]
            drafts.append(replace(draft, tree=tree, rates=None))
        return drafts


class Verified:
    """Before a drafter among a class's bases: trees that may be verified whole are.

    Unlike `Always`, it leaves the nodes as they are numbered, so that the drafter can observe them.
    """

    def propose(self, requests, budget):
        return [
            replace(draft, rates=None) if len(draft.tree) <= 1 + request.limit else draft
            for request, draft in zip(requests, super().propose(requests, budget), strict=True)
        ]


class Lying:
    """Before a drafter among a class's bases: names other distributions than it drew from."""

    def propose(self, requests, budget):
        drafts = super().propose(requests, budget)
        for draft in drafts:
            if draft.probs is not None:
                draft.probs[:] = draft.probs[:, ::-1]
        return drafts


#: Rules, and shapes of trees that are drawn for them by a model or a head.
DRAWN = [
    ("token_wise", {"how": "independent", "length": 3}),
    ("block", {"how": "independent", "length": 3}),
    ("recursive", {"how": "independent", "branching": (2, 2)}),
    ("recursive", {"how": "without_replacement", "branching": (2, 2)}),
    ("traversal", {"how": "without_replacement", "branching": (2, 1, 2), "length": 3}),
    ("best_of_k", {"how": "independent", "branching": (2, 1), "length": 3}),
    ("coupled", {"how": "coupled", "length": 3}),
    ("auto", {"how": "without_replacement", "branching": (2, 1)}),
]
#: Caches of fake models that are short of something, by what it is.
SHORT_CACHES = {
    "pages": {"pages": 3, "page_size": 8},
    "sequences": {"sequences": 2},
    "nothing fits": {"pages": 1, "page_size": 4},
    "chunk": {"chunk": 4},
}


def suffix(prompts: Texts, texts: Texts) -> Drafter:
    """Return a suffix drafter whose store has answers that go wrong after some tokens."""
    store = SuffixStore(100_000)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        store.add([*prompt, *text[: 4 + i % 5], 1, 2])
    return Always(SuffixDrafter(store))


def head(prompts: Texts, texts: Texts) -> Drafter:
    """Return the drafter of a head that is told the texts; it drafts trees of a fixed size."""
    shape = {"branching": 3, "beam": 2, "length": 4, "nodes": 6}
    return HeadDrafter(ToldHead(prompts, texts), **shape)


#: Heads read layer 1 of the target.
DRAFTERS: dict[str, Callable[[Texts, Texts], Drafter]] = {
    "lookup": lambda prompts, texts: LookupDrafter(length=5),
    "suffix": suffix,
    "token_recycling": lambda prompts, texts: Always(TokenRecyclingDrafter(nodes=20)),
    "jacobi": lambda prompts, texts: JacobiDrafter(length=5),
    "lookahead": lambda prompts, texts: LookaheadDrafter(window=4, n=3, guesses=4),
    "head": head,
    "medusa": lambda prompts, texts: Always(MedusaDrafter(ToldMedusa(texts), nodes=6, adapt=False)),
    "head_and_suffix": lambda prompts, texts: head(prompts, texts) | suffix(prompts, texts),
    "scripted": lambda prompts, texts: ScriptedDrafter(texts, length=6),
    "synthetic": lambda prompts, texts: SyntheticDrafter([0.9, 0.7, 0.5], answers=texts),
    "mixed": lambda prompts, texts: (
        LookupDrafter(length=4)
        | suffix(prompts, texts)
        | SyntheticDrafter([0.5, 0.5, 0.5], answers=texts)
    ),
}
