"""The best tree over marginals: what drafters of many tokens at once need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ... import _core
from ..._ffi.integers import Int32Array, one_int32, to_int32
from ...tree import TokenTree
from .costs import Cost, check_budget, costs_of, gain_of
from .rated_tree import RatedTree

_REALS = (np.dtype(np.float32), np.dtype(np.float64))


def best_first(
    marginals: npt.ArrayLike,
    budget: int,
    *,
    root: int,
    tokens: npt.ArrayLike | None = None,
    cost: Cost | None = None,
) -> RatedTree:
    """Return the tree of the most probable paths, where depths are independent of each other.

    A drafter that predicts several tokens in one pass (block diffusion, Medusa's heads) has a
    distribution for each depth, but none of a token given the ones before it. The probability of a
    path is then the product along it, and the best tree of a budget is found by taking the most
    probable candidate next to the tree, again and again (DDTree, arXiv 2604.12989): no other tree
    of as many nodes has a larger expected number of tokens.

    Parameters
    ----------
    marginals
        (depth, k) probabilities: row d is the distribution of the token at depth d + 1. Rows may
        sum to less than 1: the most probable tokens of a distribution are enough.
    budget
        The most nodes to draft, the root not counted.
    root
        The token of node 0: the last token of the text.
    tokens
        (depth, k) integers, the token of each probability; by default column j is token j.
    cost
        What a round of so many rows costs. With it the tree has as many nodes as promise the most
        tokens per second, perhaps none; without it, the budget.

    Returns
    -------
    RatedTree
        Nodes in the order in which they were taken, so any prefix is the best tree of its size.
        Paths of probability 0 are left out.

    Raises
    ------
    ValueError
        If a probability is NaN or outside [0, 1], those of a depth sum to more than 1, a depth has
        a token twice, the budget is negative, or a cost is no positive number or falls with rows.

    Notes
    -----
    The drafts are ``deterministic`` for the verifier: they were chosen by value.

    Examples
    --------
    >>> grown = best_first([[0.6, 0.4], [0.9, 0.1]], 3, root=7)
    >>> print(grown.tree)
    0:7
    |- 1:0
    |  `- 2:0
    `- 3:1
    >>> round(grown.expected_tokens, 2)
    2.54
    """
    budget = check_budget(budget)
    probs = np.ascontiguousarray(marginals)
    if probs.dtype not in _REALS:
        probs = probs.astype(np.float64)
    costs = costs_of(cost, budget)
    core, rates = _core.best_first(
        one_int32(root, "root"),
        probs,
        None if tokens is None else _as_int32(tokens),
        budget,
        costs,
    )
    expected = float(rates.sum())
    return RatedTree(TokenTree._wrap(core), rates, gain_of(expected, len(rates), costs))


def _as_int32(tokens: npt.ArrayLike) -> Int32Array:
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.int32 and tokens.flags.c_contiguous:
        return tokens  # the checks below take longer than the tree
    return to_int32(tokens, "tokens", ndim=2)
