"""Every outcome of an acceptance rule on a drafted tree, with its exact probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from ..tree import TokenTree, as_trees
from .flatten import RULES, Drawn, kind, names_per_node
from .request import set_draft, set_target, set_trees
from .sampling import Sampling

Float64 = npt.NDArray[np.float64]


class Outcome(NamedTuple):
    """One thing a rule may decide about a tree."""

    probability: float
    node: int
    """The last accepted node; 0 where none was."""
    bonus: int
    """The token that follows it; -1 where it is a stop token."""


@dataclass(frozen=True)
class DraftedTree:
    """A tree with the distributions around it: what a rule of your own is given.

    Attributes
    ----------
    tree : TokenTree
        The drafted tree.
    target : numpy.ndarray
        (R, V) float64, the target's distribution after each row.
    draft : numpy.ndarray or None
        (R, V) float64, the distribution that the children of each row were drawn from.
    drawn : tuple of str
        How each node was drawn; the root's entry means nothing.
    ends : frozenset of int
        The drafted nodes that hold a stop token. They have no children here, and whatever follows
        them is dropped.
    """

    tree: TokenTree
    target: Float64
    draft: Float64 | None
    drawn: tuple[str, ...]
    ends: frozenset[int] = frozenset()

    def ends_at(self, node: int) -> bool:
        """Return whether the text ends with a drafted node: a stop token."""
        return node in self.ends

    def children(self, node: int) -> list[int]:
        """Return the children of a node in draw order."""
        return [int(c) for c in np.flatnonzero(self.tree.parents == node)]

    def p(self, node: int) -> Float64:
        """Return the target's distribution after a node, (V,)."""
        distribution: Float64 = self.target[self.tree.rows[node]]
        return distribution

    def distribution_of(self, node: int) -> Float64:
        """Return the distribution that a node was drawn from, given its earlier siblings; (V,)."""
        token, parent = self.tree.tokens[node], int(self.tree.parents[node])
        distribution: Float64 = np.zeros(self.target.shape[1])
        if self.drawn[node] == "deterministic":
            distribution[token] = 1.0
            return distribution
        if self.draft is None:
            raise ValueError(f"node {node} was drawn from a distribution, so draft_probs is needed")
        distribution[:] = self.draft[self.tree.rows[parent]]
        if self.drawn[node] == "without_replacement":
            distribution[[int(self.tree.tokens[s]) for s in self.children(parent) if s < node]] = (
                0.0
            )
        distribution /= distribution.sum()
        return distribution


class BranchingRng:
    """A source of randomness that takes every branch, one after another.

    A rule asks `bernoulli` and `categorical` as it would ask a generator; `branches` runs it until
    every answer has been given.
    """

    def __init__(self) -> None:
        self._choices: list[tuple[list[int], list[float]]] = []
        self._current: list[int] = []
        self._at = 0

    def bernoulli(self, p: float, key: Any = None) -> bool:
        """Return whether an event of probability p happens."""
        return bool(self._choose([1, 0], [p, 1.0 - p]))

    def categorical(self, weights: npt.ArrayLike, key: Any = None) -> int:
        """Return an index drawn in proportion to weights."""
        w = np.asarray(weights, np.float64)
        if not (w >= 0).all() or not w.sum() > 0:
            raise ValueError(f"weights must be non-negative with a positive sum, got {w}")
        return self._choose(list(range(len(w))), list(w / w.sum()))

    def token(self, weights: npt.ArrayLike, depth: int) -> int:
        """Return a token drawn in proportion to weights; see `RoundRng`."""
        return self.categorical(weights)

    def _choose(self, values: list[int], probabilities: list[float]) -> int:
        if self._at == len(self._choices):
            options = [(v, p) for v, p in zip(values, probabilities, strict=True) if p > 0]
            self._choices.append(([v for v, _ in options], [p for _, p in options]))
            self._current.append(0)
        self._at += 1
        return self._choices[self._at - 1][0][self._current[self._at - 1]]

    def branches(self, run: Callable[[BranchingRng], Any]) -> list[tuple[float, Any]]:
        """Run a function of this generator in every way; return (probability, its value)."""
        found = []
        while True:
            self._at = 0
            value = run(self)
            choices = zip(self._choices, self._current, strict=True)
            found.append((float(np.prod([c[1][i] for c, i in choices])), value))
            while self._current:
                self._current[-1] += 1
                if self._current[-1] < len(self._choices[-1][0]):
                    break
                self._current.pop()
                self._choices.pop()
            else:
                return found


Rule = Callable[[DraftedTree, Any], tuple[int, int]]
"""A drafted tree and a source of randomness, `BranchingRng` or `RoundRng` -> the last accepted node
and the token after it."""


def enumerate_outcomes(
    target_probs: npt.ArrayLike,
    trees: TokenTree | Sequence[TokenTree],
    *,
    rule: str | Rule,
    drawn: Drawn,
    draft_probs: npt.ArrayLike | None = None,
    draft_probs_per_node: npt.ArrayLike | None = None,
    check: bool = True,
    epsilon: float = 0.09,
    delta: float = 0.3,
    stop_tokens: Sequence[int] = (),
) -> list[list[Outcome]]:
    """Return every outcome of a rule on each tree, with its exact probability.

    A rule's name runs the very code that ``kvctl.verify`` runs, with a source of randomness that
    takes every branch. A function runs a rule of your own.

    Parameters
    ----------
    target_probs
        (R, V) distributions of the target, as `logits` of ``kvctl.verify``.
    trees
        One tree or several.
    rule
        A name, or a function of (`DraftedTree`, `BranchingRng`) that returns (last accepted node,
        bonus).
    drawn, draft_probs, draft_probs_per_node
        As in ``kvctl.verify``.
    check
        Whether to refuse combinations that would be biased. Without it one can see how biased.
    epsilon, delta
        As in ``kvctl.verify``.
    stop_tokens
        As in `Sampling`, for a rule's name. Where the last accepted node holds one the bonus is -1.

    Returns
    -------
    list of list of Outcome
        For each tree; their probabilities sum to 1. The same outcome may appear more than once.
    """
    trees = as_trees(trees)
    target = np.ascontiguousarray(target_probs, np.float64)
    per_node = draft_probs_per_node is not None
    given = draft_probs_per_node if per_node else draft_probs
    draft = None if given is None else np.ascontiguousarray(given, np.float64)
    if callable(rule):
        if per_node:
            raise ValueError("a rule of your own takes draft_probs, not draft_probs_per_node")
        return _outcomes_of(rule, trees, target, draft, drawn)
    request = ffi.verify.new_request()
    request.rule = kind(rule, RULES, "rule")
    set_trees(request, trees, drawn)
    greedy = rule == "greedy"
    sampling = Sampling(temperature=0.0 if greedy else 1.0, stop_tokens=stop_tokens)
    set_target(request, target, [sampling], probabilities=True)
    if draft is not None:
        set_draft(request, draft, per_node=per_node)
    request.epsilon, request.delta = epsilon, delta
    raw = ffi.verify.enumerate(request, check)
    outcomes: list[list[Outcome]] = [[] for _ in trees]
    for sequence, node, bonus, probability in np.frombuffer(bytes(raw), np.float64).reshape(-1, 4):
        outcomes[int(sequence)].append(Outcome(float(probability), int(node), int(bonus)))
    return outcomes


def _outcomes_of(
    rule: Rule,
    trees: Sequence[TokenTree],
    target: Float64,
    draft: Float64 | None,
    drawn: Drawn,
) -> list[list[Outcome]]:
    """Return every outcome of a rule of the caller's on each tree."""
    outcomes = []
    row, kinds = 0, names_per_node(trees, drawn)
    for tree, names in zip(trees, kinds, strict=True):
        rows = slice(row, row + tree.num_rows)
        row = rows.stop
        part = None if draft is None else draft[rows]
        drafted = DraftedTree(tree, target[rows], part, names)
        outcomes.append(_branches(rule, drafted))
    return outcomes


def _branches(rule: Rule, drafted: DraftedTree) -> list[Outcome]:
    found = BranchingRng().branches(lambda rng: rule(drafted, rng))
    return [Outcome(p, int(node), int(bonus)) for p, (node, bonus) in found]
