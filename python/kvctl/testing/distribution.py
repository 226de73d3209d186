"""Check an acceptance rule by its exact distribution.

A rule is lossless for a drafter if, over every draft and every decision, the emitted tokens follow
the target's distribution. `joint_distribution` computes that distribution exactly for small
vocabularies. For larger ones, `chi_square` tests counts, and `trials_needed` returns how many
trials find a given bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree
from ..verification.enumeration import BranchingRng, Outcome, Rule, enumerate_outcomes
from .chi_square import ChiSquare, chi_square, trials_needed

Float64 = npt.NDArray[np.float64]
Prefix: TypeAlias = tuple[int, ...]
Model: TypeAlias = Callable[[Prefix], npt.ArrayLike]
"""The tokens after the root so far -> the distribution of the next, (V,)."""


@dataclass(frozen=True)
class Draft:
    """A drafted tree and what the verifier must know about it.

    Attributes
    ----------
    tree : TokenTree
        Node 0 is the root, whatever its token.
    drawn : str or sequence of str
        For all nodes, or for each.
    distributions : dict
        The declared draft distribution of the children of a node, (V,); nodes without drawn
        children may be left out.
    """

    tree: TokenTree
    drawn: str | Sequence[str]
    distributions: dict[int, npt.ArrayLike]


Drafter: TypeAlias = Callable[[BranchingRng], Draft]


def path_tokens(tree: TokenTree, node: int) -> Prefix:
    """Return the tokens from below the root to a node."""
    tokens: list[int] = []
    while node > 0:
        tokens.append(int(tree.tokens[node]))
        node = int(tree.parents[node])
    return tuple(reversed(tokens))


def tree_drafter(parents: Sequence[int], model: Model, how: str) -> Drafter:
    """Return a drafter of trees of one shape.

    Parameters
    ----------
    parents
        The shape, as of a `TokenTree`.
    model
        The draft distribution after each prefix.
    how
        ``independent`` or ``without_replacement``; or ``deterministic``, which takes the most
        likely token not yet among the siblings.
    """

    def draft(rng: BranchingRng) -> Draft:
        tokens, kept, index = [0], [-1], {0: 0}
        prefixes: list[Prefix] = [()]
        distributions: dict[int, npt.ArrayLike] = {}
        for node, shape_parent in enumerate(parents):
            parent = index.get(shape_parent)
            if node == 0 or parent is None:
                continue
            distribution = np.array(model(prefixes[parent]), np.float64)
            distributions[parent] = distribution.copy()
            if how != "independent":
                distribution[[t for t, p in zip(tokens, kept, strict=True) if p == parent]] = 0.0
            if not distribution.sum() > 0:
                continue  # the support is exhausted: the drafter stops here
            token = (
                int(distribution.argmax())
                if how == "deterministic"
                else rng.categorical(distribution)
            )
            index[node] = len(tokens)
            tokens.append(token)
            kept.append(parent)
            prefixes.append((*prefixes[parent], token))
        return Draft(TokenTree(tokens, kept), how, distributions)

    return draft


@dataclass(frozen=True)
class JointDistribution:
    """What a rule emits, exactly.

    Attributes
    ----------
    distribution : numpy.ndarray
        (V,) * length float64, the joint distribution of the first emitted tokens; where a round
        emits fewer, the target itself continues.
    target : numpy.ndarray
        The same for the target alone.
    mean_emitted : float
        Expected tokens per round.
    """

    distribution: Float64
    target: Float64
    mean_emitted: float

    @property
    def max_difference(self) -> float:
        """The largest difference of a probability from the target's."""
        return float(np.abs(self.distribution - self.target).max())

    @property
    def total_variation(self) -> float:
        """Total variation distance from the target."""
        return total_variation(self.distribution, self.target)


def joint_distribution(
    drafter: Drafter, target: Model, *, rule: str | Rule, length: int = 3, check: bool = True
) -> JointDistribution:
    """Return the exact distribution of the first emitted tokens, over all drafts and outcomes.

    Parameters
    ----------
    drafter
        Draws a `Draft`; every branch of its random choices is taken.
    target
        The target's distribution after each prefix.
    rule
        The name of a shipped rule, or a rule of your own.
    length
        How many tokens.
    check
        Whether to refuse combinations known to be biased.

    Raises
    ------
    ValueError
        If `check` is set and the combination would be biased, or a draft has probability 0 under
        its declared distribution.
    """
    distributions: dict[Prefix, Float64] = {}

    def p(prefix: Prefix) -> Float64:
        if prefix not in distributions:
            distributions[prefix] = np.asarray(target(prefix), np.float64)
        return distributions[prefix]

    vocab = len(p(()))
    drafts: list[tuple[float, Draft]] = BranchingRng().branches(drafter)
    target_rows, draft_rows = [], []
    for _, draft in drafts:
        for node in range(len(draft.tree)):
            target_rows.append(p(path_tokens(draft.tree, node)))
            draft_rows.append(
                np.asarray(draft.distributions.get(node, np.zeros(vocab)), np.float64)
            )
    outcomes = enumerate_outcomes(
        np.array(target_rows),
        [draft.tree for _, draft in drafts],
        rule=rule,
        drawn=[draft.drawn for _, draft in drafts],
        draft_probs=np.array(draft_rows),
        check=check,
    )
    distribution = np.zeros((vocab,) * length)
    mean = 0.0
    for (probability, draft), found in zip(drafts, outcomes, strict=True):
        for outcome in found:
            emitted = (*path_tokens(draft.tree, outcome.node), outcome.bonus)
            mean += probability * outcome.probability * len(emitted)
            _add(distribution, p, emitted[:length], probability * outcome.probability)
    expected = np.zeros_like(distribution)
    _add(expected, p, (), 1.0)
    return JointDistribution(distribution, expected, mean)


def _add(
    distribution: Float64, p: Callable[[Prefix], Float64], prefix: Prefix, mass: float
) -> None:
    """Add mass to all continuations of a prefix, in the target's proportions."""
    if mass == 0:
        return
    if len(prefix) == distribution.ndim:
        distribution[prefix] += mass
        return
    for token, probability in enumerate(p(prefix)):
        _add(distribution, p, (*prefix, token), mass * float(probability))


def total_variation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return half the sum of absolute differences."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum() / 2)


def expected_emitted(acceptance: float, length: int) -> float:
    """Return the mean tokens of a round of a chain whose tokens are accepted independently.

    Leviathan et al. 2023, equation 1: (1 - a^(n + 1)) / (1 - a) for acceptance a = 1 - TV(p, q)
    and n drafted tokens.
    """
    if acceptance == 1:
        return length + 1.0
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)


def acceptance_of(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Return the probability that token-wise rejection accepts a token of q for p: 1 - TV(p, q)."""
    return 1.0 - total_variation(p, q)


__all__ = [
    "ChiSquare",
    "Draft",
    "Drafter",
    "JointDistribution",
    "Model",
    "Outcome",
    "acceptance_of",
    "chi_square",
    "expected_emitted",
    "joint_distribution",
    "path_tokens",
    "total_variation",
    "tree_drafter",
    "trials_needed",
]
