"""The part of a copied draft that may be worth verifying."""

from __future__ import annotations

from collections.abc import Sequence

# A node brings as many tokens as it is likely, and a row costs more of a plain step than this
# wherever rows cost anything. Rates fall fast along a doubtful path: what is left out sums up to
# little.
_LEAST = 0.01


def likely_nodes(
    tokens: Sequence[int], parents: Sequence[int], rates: Sequence[float], most: int
) -> tuple[list[int], list[int], list[float]]:
    """Return a tree without the nodes that are hardly ever right.

    Every node that is proposed takes the drafting loop's time, verified or not.

    Parameters
    ----------
    tokens, parents
        Of the tree.
    rates
        The probability of each node's path, which never exceeds that of its parent's.
    most
        Keep at most so many nodes, the root not counted: the likeliest; of equal ones the first.

    Returns
    -------
    tuple
        The tokens, parents and rates of the smaller tree.
    """
    kept = [node for node in range(1, len(rates)) if rates[node] >= _LEAST]
    if len(kept) > most:
        kept = sorted(sorted(kept, key=lambda node: -rates[node])[:most])
    places = {0: 0} | {node: place for place, node in enumerate(kept, 1)}
    return (
        [tokens[0], *(tokens[node] for node in kept)],
        [-1, *(places[parents[node]] for node in kept)],
        [1.0, *(rates[node] for node in kept)],
    )
