"""Several drafts of one text as one draft that every rule can trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tree import TokenTree
from ..arrays import as_array
from ..draft import Draft
from .agreement import Agreement
from .evidence import Evidence, evidence_of


@dataclass(frozen=True, eq=False)
class Merged:
    """One draft, and where the nodes of each part are in it; -1 for those that were left out.

    `evidence` is what their drafters say of the nodes. It is None where not all are rated, or only
    one part has any.
    """

    draft: Draft
    parts: list[Draft]
    places: list[list[int]]
    evidence: Evidence | None

    def learn(self, emitted: Sequence[int], agreement: Agreement) -> None:
        """Tell how often nodes of each kind were right that the emitted tokens tried."""
        if self.evidence is None:
            return
        tokens, children = self.draft.tree.tokens.tolist(), _children(self.draft.tree)
        node = 0
        for token in emitted:
            right = None
            for child in children[node]:
                hit = tokens[child] == token
                self.evidence.learn(child, hit, agreement)
                right = child if hit else right
            if right is None:
                return
            node = right


def merge(parts: Sequence[Draft], limit: int, agreement: Agreement) -> Merged:
    """Return one draft with the nodes of all parts, which have the same root.

    Nodes that were drawn at random are all there, each with its earlier siblings, before those that
    were not: deterministic nodes may be chosen by any means, also by what was drawn.

    Parameters
    ----------
    parts
        Drafts of one text.
    limit
        The most drafted nodes, unless all of them are deterministic and rated: then the loop
        chooses.
    agreement
        What was learnt of nodes that several parts have, and of others.

    Raises
    ------
    ValueError
        If several parts were drawn from distributions that cannot be given node by node.
    """
    drafted = [part for part in parts if len(part.tree) > 1]
    if len(drafted) < 2 and all(part.deterministic for part in drafted):
        # Nothing to merge and, of nodes that nobody else has an equal or another of, to learn.
        places = [list(range(len(part.tree))) for part in parts]
        return Merged(drafted[0] if drafted else parts[0], list(parts), places, None)
    order = sorted(range(len(parts)), key=lambda i: parts[i].deterministic)
    rated = all(part.rates is not None or len(part.tree) == 1 for part in parts)
    growth = _Growth(int(parts[0].tree.tokens[0]))
    most = None if rated and all(part.deterministic for part in parts) else limit
    places = [[] for _ in parts]
    for i in order:
        places[i] = growth.add(parts[i], most)
    size = len(growth.tokens)
    random = [i for i in order if not parts[i].deterministic]
    probs, per_node = _distributions(parts, places, random, size)
    evidence = evidence_of(growth.tokens, growth.parents, parts, places) if rated else None
    draft = Draft(
        TokenTree(growth.tokens, growth.parents),
        drawn=growth.drawn if random else "deterministic",
        probs=probs,
        probs_per_node=per_node,
        rates=None if evidence is None else evidence.rates(growth.parents, agreement),
    )
    return Merged(draft, list(parts), places, evidence)


class _Growth:
    """A tree that takes the nodes of one draft after another."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self.drawn = ["deterministic"]
        self._children: dict[tuple[int, int], int] = {}  # (parent, token) -> the first such node

    def add(self, draft: Draft, most: int | None) -> list[int]:
        """Add a draft's nodes, at most so many in all; return where each is, or -1."""
        tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
        drawn = draft.drawn
        places = [0]
        for node in range(1, len(tokens)):
            name = drawn if isinstance(drawn, str) else drawn[node]
            places.append(self._place(places[parents[node]], tokens[node], name, most))
        return places

    def _place(self, parent: int, token: int, drawn: str, most: int | None) -> int:
        if parent < 0:
            return -1
        known = self._children.get((parent, token), -1)
        if known >= 0 and drawn == "deterministic":
            return known
        if most is not None and len(self.tokens) > most:
            return -1
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.drawn.append(drawn)
        self._children.setdefault((parent, token), node)
        return node


def _children(tree: TokenTree) -> list[list[int]]:
    """Return the children of each node."""
    children: list[list[int]] = [[] for _ in range(len(tree))]
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            children[parent].append(node)
    return children


def _distributions(
    parts: Sequence[Draft], places: Sequence[Sequence[int]], random: Sequence[int], size: int
) -> tuple[Any, Any]:
    """Return `probs` and `probs_per_node` of the merged draft; one of them or both are None."""
    given = [i for i in random if parts[i].probs is not None or parts[i].probs_per_node is not None]
    if not given:
        return None, None
    first = parts[given[0]]
    if len(given) == 1 and first.probs is not None:
        # Nodes that were added behind have no children that were drawn: any row will do for them.
        source = [0] * size
        for place, row in zip(places[given[0]], first.tree.rows.tolist(), strict=True):
            source[place] = row
        return _take(first.probs, source), None
    rows = np.zeros(size, np.int64)
    blocks, begin = [], 0
    for i in given:
        block = _per_node(parts[i])
        blocks.append(block)
        rows[[place for place in places[i] if place >= 0]] = [
            begin + node for node, place in enumerate(places[i]) if place >= 0
        ]
        begin += len(parts[i].tree)
    return None, _take(_join(blocks), rows.tolist())


def _per_node(draft: Draft) -> Any:
    """Return the distribution that each node of a draft was drawn from."""
    if draft.probs_per_node is not None:
        return draft.probs_per_node
    names = {draft.drawn} if isinstance(draft.drawn, str) else set(draft.drawn[1:])
    if not names <= {"independent", "deterministic", "coupled"}:
        raise ValueError(
            "of several drafters that draw at random, one that draws without replacement must give "
            "probs_per_node: what its siblings were drawn from depends on each other"
        )
    parents = draft.tree.parents.tolist()
    rows = draft.tree.rows.tolist()
    return _take(draft.probs, [rows[max(parent, 0)] for parent in parents])


def _take(probs: Any, rows: list[int]) -> Any:
    """Return rows of a matrix, or of each of a pair."""
    if isinstance(probs, tuple):
        return tuple(_take(part, rows) for part in probs)
    return as_array(probs)[rows]


def _join(blocks: list[Any]) -> Any:
    if len(blocks) == 1:
        return blocks[0]
    if any(isinstance(block, tuple) for block in blocks):
        raise ValueError("several drafters that draw at random must give dense distributions")
    return np.concatenate([np.asarray(block) for block in blocks])
