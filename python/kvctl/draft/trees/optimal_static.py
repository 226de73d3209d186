"""The best shape of a tree whose acceptance is known by rank, before any token is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..._ffi.integers import Int32Array, one_int32, to_int32
from ...tree import TokenTree
from .costs import Cost, check_budget, costs_of, gain_of

# Measured rates of all ranks may sum to this much more than 1.
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class StaticTree:
    """The shape of a tree, and what a tree of that shape promises.

    Attributes
    ----------
    parents : numpy.ndarray
        (n,) int32, the parent of each node; -1 for node 0. Levels come one after another.
    ranks : numpy.ndarray
        (n,) int32, which of its parent's children a node is, 0 for the first; -1 for node 0.
    depths : numpy.ndarray
        (n,) int32, edges between the root and each node.
    rates : numpy.ndarray
        (n,) float64, the probability that a node and all above it are accepted; the root's is 1.
    gain : float
        The tokens per second of a round over those of plain decoding, under the cost given.
    """

    parents: Int32Array
    ranks: Int32Array
    depths: Int32Array
    rates: npt.NDArray[np.float64]
    gain: float

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def expected_tokens(self) -> float:
        """The mean number of tokens that a round emits, the one behind the drafts included."""
        return float(self.rates.sum())

    def fill(self, tokens: npt.ArrayLike) -> TokenTree:
        """Return the tree with these tokens, (n,) integers, one for each node."""
        return TokenTree(to_int32(tokens, "tokens"), self.parents)


def optimal_static(
    acceptance: npt.ArrayLike,
    cost: Cost | None,
    budget: int,
    *,
    max_depth: int | None = None,
) -> StaticTree:
    """Return the shape with the most expected tokens: Sequoia's dynamic programme (2402.12374).

    Where a node is accepted as often as its rank among its siblings says, whatever its tokens are,
    the best tree of n nodes is a root with children of decreasing rank, each of which roots the
    best tree of its share of the n - 1 nodes. The tables of all sizes are filled once, and the size
    is the one that promises the most tokens per second.

    Parameters
    ----------
    acceptance
        (k,) the probability that the first, second, ... child of an accepted node is the accepted
        one; or (depth, k), row d for the children of nodes at depth d. They exclude each other, so
        a row sums to at most 1.
    cost
        What a round of so many rows costs; None takes all rounds to cost the same, and the budget.
    budget
        The most nodes to draft, the root not counted.
    max_depth
        The deepest node; by default the budget, or the rows of `acceptance` if it has any.

    Returns
    -------
    StaticTree
        Nodes that could only add 0 are left out.

    Raises
    ------
    ValueError
        If a rate is NaN or outside [0, 1], a row sums to more than 1, the budget or the depth is
        negative, or a cost is no positive number or falls with more rows.

    Examples
    --------
    >>> shape = optimal_static([0.6, 0.2], None, 4)
    >>> shape.parents.tolist(), shape.ranks.tolist()
    ([-1, 0, 0, 1, 3], [-1, 0, 1, 0, 0])
    """
    budget = check_budget(budget)
    rates = _check_acceptance(np.asarray(acceptance, np.float64))
    depth = budget if rates.ndim == 1 else len(rates)
    if max_depth is not None:
        depth = min(depth, one_int32(max_depth, "max_depth"))
        if depth < 0:
            raise ValueError(f"max_depth must not be negative, got {max_depth}")
    depth = min(depth, budget)
    costs = costs_of(cost, budget)
    if rates.ndim == 1:
        rates = np.broadcast_to(rates, (depth, len(rates)))
    tables = _Tables(rates[:depth], budget)
    expected = tables.best[0, 1:]
    if costs is not None:
        size = int(np.argmax(expected / costs)) + 1
    else:
        size = int(np.argmax(expected >= expected.max() * (1 - 1e-12))) + 1
    return _build(tables, size, costs)


class _Tables:
    """The best expected tokens of every size and depth, and how they come about.

    ``best[d, n]`` is of a tree of n nodes whose root is at depth d, -inf where there is none.
    ``shares[d, k, n]`` is how many of n nodes the child of rank k takes, the others being for
    children of larger rank; 0 ends the row of children.
    """

    def __init__(self, acceptance: npt.NDArray[np.float64], budget: int) -> None:
        depth, ranks = acceptance.shape
        sizes = budget + 1
        self.acceptance = acceptance
        self.best = np.full((depth + 1, sizes + 1), -np.inf)
        self.best[:, 1] = 1.0
        forests = np.full((depth, ranks + 1, sizes), -np.inf)
        forests[:, :, 0] = 0.0
        self.shares = np.zeros((depth, ranks, sizes), np.int32)
        for n in range(1, sizes):
            exists = np.isfinite(self.best[1:, 1 : n + 1])
            children = np.where(exists, self.best[1:, 1 : n + 1], 0.0)  # (depth, n)
            for rank in range(ranks - 1, -1, -1):
                first = np.where(exists, acceptance[:, rank, None] * children, -np.inf)
                others = forests[:, rank + 1, n - 1 :: -1]
                total = first + others
                self.shares[:, rank, n] = np.argmax(total, axis=1) + 1
                forests[:, rank, n] = total.max(axis=1)
            self.best[:-1, n + 1] = 1.0 + forests[:, 0, n]


def _build(tables: _Tables, size: int, costs: npt.NDArray[np.float64] | None) -> StaticTree:
    """Return the tree of that size by following the tables, level by level."""
    parents, ranks, depths, rates = [-1], [-1], [0], [1.0]
    sizes = [size]
    for node in range(size):  # grows as children are added
        depth, rest, rank = depths[node], sizes[node] - 1, 0
        while rest > 0:
            share = int(tables.shares[depth, rank, rest])
            parents.append(node)
            ranks.append(rank)
            depths.append(depth + 1)
            rates.append(rates[node] * float(tables.acceptance[depth, rank]))
            sizes.append(share)
            rest -= share
            rank += 1
    values = np.array(rates)
    return StaticTree(
        np.array(parents, np.int32),
        np.array(ranks, np.int32),
        np.array(depths, np.int32),
        values,
        gain_of(float(values.sum()), size, costs),
    )


def _check_acceptance(rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if rates.ndim not in (1, 2) or 0 in rates.shape:
        raise ValueError(
            f"acceptance must be rates by rank (k,), or by depth and rank (depth, k), got shape "
            f"{rates.shape}"
        )
    bad = np.argwhere(~((rates >= 0) & (rates <= 1)))
    if bad.size:
        at = tuple(bad[0].tolist())
        raise ValueError(f"a rate of acceptance must be in [0, 1], got {rates[at]} at {at}")
    sums = rates.sum(axis=-1)
    if (sums > 1 + _SUM_TOLERANCE).any():
        raise ValueError(
            f"siblings exclude each other, so their acceptance must sum to at most 1, got "
            f"{sums.max()}"
        )
    return rates
