"""The best part of a tree that was grown too large."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...tree import TokenTree
from .costs import Cost, check_budget, costs_of, gain_of
from .rated_tree import RatedTree


def rerank(
    candidates: TokenTree, rates: npt.ArrayLike, budget: int, *, cost: Cost | None = None
) -> RatedTree:
    """Return the best subtree of the candidates: EAGLE-2's second phase (arXiv 2406.16858).

    A drafter grows a tree level by level, larger than what is to be verified. A node's rate is the
    product of the drafter's probabilities along its path, which estimates the probability that it
    is accepted. As a rate never exceeds its parent's, the nodes with the largest rates are a tree,
    and no other subtree of as many nodes has a larger expected number of tokens.

    Parameters
    ----------
    candidates
        The tree to choose from.
    rates
        (len(candidates),) the probability of the path to each node; the root's is 1.
    budget
        The most nodes to keep, the root not counted.
    cost
        What a round of so many rows costs. With it the tree has as many nodes as promise the most
        tokens per second, perhaps none; without it, the budget.

    Returns
    -------
    RatedTree
        Of equal rates the lower node is kept. Nodes of rate 0 are left out. Its `nodes` says which
        of the candidates were kept.

    Raises
    ------
    ValueError
        If a rate is NaN or outside [0, 1], exceeds its parent's or the root's is not 1, if there
        is not one for each node, if the budget is negative, or a cost is no positive number or
        falls with rows.

    Notes
    -----
    Verify the result with ``drawn="deterministic"`` even where the candidates were drawn at random:
    it was chosen by value, and siblings that are left out would bias every other rule.

    Examples
    --------
    >>> candidates = kvctl.TokenTree([7, 1, 2, 3, 4], [-1, 0, 0, 1, 2])
    >>> best = rerank(candidates, [1, 0.5, 0.3, 0.4, 0.2], 2)
    >>> best.tree, best.nodes.tolist()
    (TokenTree([7, 1, 3], [-1, 0, 1]), [0, 1, 3])
    """
    budget = check_budget(budget)
    values = _check_rates(candidates, np.asarray(rates, np.float64))
    costs = costs_of(cost, budget)
    count = min(budget, int(np.count_nonzero(values)) - 1)
    if costs is not None:
        best = np.sort(values[1:])[::-1][:count]
        emitted = 1.0 + np.concatenate([[0.0], np.cumsum(best)])
        count = int(np.argmax(emitted / costs[: count + 1]))
    tree, nodes = candidates.prune(values, 1 + count)
    kept = values[nodes]
    return RatedTree(tree, kept, gain_of(float(kept.sum()), len(kept), costs), nodes)


def _check_rates(tree: TokenTree, rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rates of a tree's nodes if they are probabilities of paths."""
    if rates.shape != (len(tree),):
        raise ValueError(f"{len(tree)} candidates need one rate each, got shape {rates.shape}")
    bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))
    if bad.size:
        raise ValueError(f"a rate must be in [0, 1], got {rates[bad[0]]} for node {bad[0]}")
    if rates[0] != 1:
        raise ValueError(f"the root is always kept, so its rate must be 1, got {rates[0]}")
    parents = tree.parents[1:]
    grows = np.flatnonzero(rates[1:] > rates[parents])
    if grows.size:
        node = int(grows[0]) + 1
        raise ValueError(
            f"rates are of paths, so none may exceed its parent's, but node {node} has "
            f"{rates[node]} and its parent, node {tree.parents[node]}, {rates[tree.parents[node]]}"
        )
    return rates
