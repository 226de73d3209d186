"""What the drafters of a merged tree say of each of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..draft import Draft
from ..opinion import Opinion
from .agreement import Agreement, kinds_of


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is said of each node of a merged tree, given that those above it are right.

    Attributes
    ----------
    kinds : list of int
        The kinds of `Agreement`; the root's says nothing.
    expected : list of float
        The probability that the drafters say which propose a node: the largest. Of nodes that
        another drafter was asked about, only those that have no opinion are heard here.
    opinions : list of float
        What the drafter says that was asked; 0 for nodes of other kinds.
    """

    kinds: list[int]
    expected: list[float]
    opinions: list[float]

    def rates(self, parents: Sequence[int], agreement: Agreement) -> list[float]:
        """Return the probability of each node's path."""
        rates = [1.0]
        for node in range(1, len(parents)):
            own = agreement.rate(self.kinds[node], self.expected[node], self.opinions[node])
            rates.append(rates[parents[node]] * own)
        return rates

    def learn(self, node: int, hit: bool, agreement: Agreement) -> None:
        """Tell whether a node was right that was tried."""
        agreement.observe(self.kinds[node], self.expected[node], hit, self.opinions[node])


def evidence_of(
    tokens: Sequence[int],
    parents: Sequence[int],
    parts: Sequence[Draft],
    places: Sequence[Sequence[int]],
) -> Evidence:
    """Return what the drafters of a merged tree say of its nodes.

    Parameters
    ----------
    tokens, parents
        Of the merged tree.
    parts
        The drafts that it was made of, all rated.
    places
        Where the nodes of each part are in it; -1 for those that were left out.
    """
    kinds = kinds_of(parents, places)
    expected, opinions = [0.0] * len(tokens), [0.0] * len(tokens)
    proposed: dict[int, float] = {}  # by drafters that have no opinion on others' tokens
    asked: list[tuple[Opinion, dict[int, int]]] = []
    for part, mine in zip(parts, places, strict=True):
        if part.opinion is not None:
            asked.append((part.opinion, {at: node for node, at in enumerate(mine) if at >= 0}))
        for at, rate in zip(mine[1:], _behind_parents(part), strict=True):
            if at < 0:
                continue
            expected[at] = max(expected[at], rate)
            if part.opinion is None:
                proposed[at] = max(proposed.get(at, 0.0), rate)
    if asked:
        for at, rate in proposed.items():
            opinion = _ask(asked, parents[at], tokens[at])
            if opinion is not None:
                kinds[at], expected[at], opinions[at] = Agreement.ASKED, rate, opinion
    return Evidence(kinds, expected, opinions)


def _behind_parents(part: Draft) -> list[float]:
    """Return the probability of each node but the root, given that its parent is right."""
    if part.rates is None:
        return [0.0] * (len(part.tree) - 1)
    rates = [1.0, *part.rates[1:]]
    return [
        min(rate / rates[parent], 1.0) if rates[parent] > 0 else 0.0
        for rate, parent in zip(rates[1:], part.tree.parents.tolist()[1:], strict=True)
    ]


def _ask(asked: Sequence[tuple[Opinion, dict[int, int]]], parent: int, token: int) -> float | None:
    """Return what the first drafter says that knows how likely a token is."""
    for opinion, nodes in asked:
        node = nodes.get(parent)
        probability = None if node is None else opinion.probability(node, token)
        if probability is None:
            continue
        if not 0.0 <= probability <= 1.0:  # NaN too: it would stay in the pool's weights
            raise ValueError(
                f"an opinion must be a probability from 0 to 1, not {probability} (of token "
                f"{token} after node {node})"
            )
        return probability
    return None
