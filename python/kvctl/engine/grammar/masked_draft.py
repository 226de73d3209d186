"""What a grammar makes of a draft: illegal nodes left out, forced tokens added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...draft import Draft
from ...tree import TokenTree
from .bitmask import Words
from .text_grammar import TextGrammar, Walk

#: Stands for a node of a verified tree that the drafter did not propose.
FORCED = -1


@dataclass(frozen=True)
class MaskedDraft:
    """A draft as a grammar lets it be verified.

    Attributes
    ----------
    draft
        What is verified.
    nodes
        For each of its nodes, which of the proposed ones it is, or `FORCED`.
    masks
        (N, W) int32, the tokens allowed after each node.
    sure
        How many nodes behind the root are certain to be accepted, at most the limit.
    """

    draft: Draft
    nodes: Sequence[int]
    masks: Words
    sure: int


@dataclass(frozen=True)
class Freedom:
    """What may be done with a draft without a bias.

    Attributes
    ----------
    choose
        Nodes may be left out or added by their value: the draft is deterministic, or the rule
        follows the target alone.
    whole
        Nodes that are proposed stay, though they are illegal: the drafter reads what follows them.
    drawn
        How forced tokens are declared; None where the rule cannot take them.
    """

    choose: bool
    whole: bool
    drawn: str | None


def mask_draft(draft: Draft, grammar: TextGrammar, limit: int, freedom: Freedom) -> MaskedDraft:
    """Return a draft as its text's grammar lets it be verified.

    What was drawn at random, for a rule that reads the distributions, stays as it is: to leave a
    node out because of its value would bias the rule, and an illegal one is rejected anyway, since
    the target's probability is 0 under the mask. Only where the root's next token is forced, which
    no draw decides, the forced tokens are verified instead.

    Parameters
    ----------
    limit
        The most nodes that may be added.
    """
    size = len(draft.tree)
    walk = grammar.walk(draft.tree, 0 if freedom.drawn is None else limit)
    if freedom.choose or size == 1:
        return _chosen(draft, walk, limit, freedom)
    if walk.sure and freedom.drawn is not None:
        tokens = [*draft.tree.tokens.tolist(), *(token for _, token in walk.forced)]
        chain = [0, *walk.sure[:limit]]
        tree = TokenTree.chain([tokens[node] for node in chain])
        nodes = [0, *[FORCED] * (len(chain) - 1)]
        return MaskedDraft(Draft(tree, freedom.drawn), nodes, walk.masks[chain], len(chain) - 1)
    return MaskedDraft(draft, range(size), walk.masks[:size], 0)


def _chosen(draft: Draft, walk: Walk, limit: int, freedom: Freedom) -> MaskedDraft:
    """Leave illegal nodes out, and add forced ones."""
    tree, size = draft.tree, len(draft.tree)
    kept = list(range(size))
    if not freedom.whole and not all(walk.legal):
        tree, old = tree.prune(np.array(walk.legal, np.float64), sum(walk.legal))
        kept = old.tolist()
    forced = walk.forced
    if draft.rates is None:  # with rates, the budget sees to the limit
        forced = forced[: max(0, limit - (len(kept) - 1))]
    elif len(forced) > limit:
        forced = forced[:limit]
    if len(kept) == size and not forced:
        return MaskedDraft(draft, range(size), walk.masks[:size], min(len(walk.sure), limit))
    place = {node: i for i, node in enumerate(kept)}
    place |= {size + i: len(kept) + i for i in range(len(forced))}
    parents = [place[parent] for parent, _ in forced]
    if forced:
        rows = range(tree.num_rows, tree.num_rows + len(forced))
        tree = TokenTree(
            [*tree.tokens.tolist(), *(token for _, token in forced)],
            [*tree.parents.tolist(), *parents],
            rows=[*tree.rows.tolist(), *rows],
        )
    sure = [place[node] for node in walk.sure if node in place]
    rates = None
    if draft.rates is not None:
        rates = [draft.rates[node] for node in kept]
        for node in sure:
            if node < len(kept):
                rates[node] = 1.0
        for parent in parents:
            rates.append(rates[parent])
    masked = replace(
        draft,
        tree=tree,
        drawn=_drawn(draft, kept, len(forced), freedom),
        rates=rates,
        # Only rules that read no distributions verify a part of a draft that was drawn from one.
        probs=None,
        probs_per_node=None,
    )
    nodes = [*kept, *[FORCED] * len(forced)]
    masks = walk.masks[[*kept, *range(size, size + len(forced))]]
    return MaskedDraft(masked, nodes, masks, min(len(sure), limit))


def _drawn(draft: Draft, kept: Sequence[int], forced: int, freedom: Freedom) -> str | Sequence[str]:
    """Return how the nodes that are left and the forced ones are declared."""
    if len(kept) == 1 and freedom.drawn is not None:
        return freedom.drawn
    if isinstance(draft.drawn, str):
        return draft.drawn
    return [draft.drawn[node] for node in kept] + ["deterministic"] * forced
