"""Proof or refutation of an acceptance rule: its exact law, or Monte Carlo with known power.

A rule is lossless for a drafter if, over every draft and every decision, the emitted tokens follow
the target's law. `joint_law` computes that law exactly for small vocabularies; `chi_square` judges
counts, and `trials_needed` says how many trials would see a given bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree
from ..verify.enumeration import BranchingRng, Outcome, Rule, enumerate_outcomes

Float64 = npt.NDArray[np.float64]
Prefix: TypeAlias = tuple[int, ...]
Model: TypeAlias = Callable[[Prefix], npt.ArrayLike]
"""The tokens after the root so far -> the law of the next, (V,)."""


@dataclass(frozen=True)
class Draft:
    """A drafted tree and what the verifier is told about it.

    Attributes
    ----------
    tree : TokenTree
        Node 0 is the root, whatever its token.
    drawn : str or sequence of str
        For all nodes, or for each.
    laws : dict
        The declared draft law of the children of a node, (V,); nodes without drawn children may
        be left out.
    """

    tree: TokenTree
    drawn: str | Sequence[str]
    laws: dict[int, npt.ArrayLike]


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
        The draft law after each prefix.
    how
        ``independent`` or ``without_replacement``; or ``deterministic``, which takes the most
        likely token not yet among the siblings.
    """

    def draft(rng: BranchingRng) -> Draft:
        tokens, kept, index = [0], [-1], {0: 0}
        prefixes: list[Prefix] = [()]
        laws: dict[int, npt.ArrayLike] = {}
        for node, shape_parent in enumerate(parents):
            parent = index.get(shape_parent)
            if node == 0 or parent is None:
                continue
            law = np.array(model(prefixes[parent]), np.float64)
            laws[parent] = law.copy()
            if how != "independent":
                law[[t for t, p in zip(tokens, kept, strict=True) if p == parent]] = 0.0
            if not law.sum() > 0:
                continue  # the support is exhausted: the drafter stops here
            token = int(law.argmax()) if how == "deterministic" else rng.categorical(law)
            index[node] = len(tokens)
            tokens.append(token)
            kept.append(parent)
            prefixes.append((*prefixes[parent], token))
        return Draft(TokenTree(tokens, kept), how, laws)

    return draft


@dataclass(frozen=True)
class JointLaw:
    """What a rule emits, exactly.

    Attributes
    ----------
    law : numpy.ndarray
        (V,) * length float64, the joint law of the first emitted tokens; where a round emits
        fewer, the target itself continues.
    target : numpy.ndarray
        The same for the target alone.
    mean_emitted : float
        Expected tokens per round.
    """

    law: Float64
    target: Float64
    mean_emitted: float

    @property
    def max_difference(self) -> float:
        """The largest difference of a probability from the target's."""
        return float(np.abs(self.law - self.target).max())

    @property
    def total_variation(self) -> float:
        """Total variation distance from the target."""
        return total_variation(self.law, self.target)


def joint_law(
    drafter: Drafter, target: Model, *, rule: str | Rule, length: int = 3, check: bool = True
) -> JointLaw:
    """Return the exact law of the first emitted tokens, over every draft and every outcome.

    Parameters
    ----------
    drafter
        Draws a `Draft`; every branch of its random choices is taken.
    target
        The target's law after each prefix.
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
        its declared law.
    """
    laws: dict[Prefix, Float64] = {}

    def p(prefix: Prefix) -> Float64:
        if prefix not in laws:
            laws[prefix] = np.asarray(target(prefix), np.float64)
        return laws[prefix]

    vocab = len(p(()))
    drafts: list[tuple[float, Draft]] = BranchingRng().branches(drafter)
    target_rows, draft_rows = [], []
    for _, draft in drafts:
        for node in range(len(draft.tree)):
            target_rows.append(p(path_tokens(draft.tree, node)))
            draft_rows.append(np.asarray(draft.laws.get(node, np.zeros(vocab)), np.float64))
    outcomes = enumerate_outcomes(
        np.array(target_rows),
        [draft.tree for _, draft in drafts],
        rule=rule,
        drawn=[draft.drawn for _, draft in drafts],
        draft_probs=np.array(draft_rows),
        check=check,
    )
    law = np.zeros((vocab,) * length)
    mean = 0.0
    for (probability, draft), found in zip(drafts, outcomes, strict=True):
        for outcome in found:
            emitted = (*path_tokens(draft.tree, outcome.node), outcome.bonus)
            mean += probability * outcome.probability * len(emitted)
            _add(law, p, emitted[:length], probability * outcome.probability)
    expected = np.zeros_like(law)
    _add(expected, p, (), 1.0)
    return JointLaw(law, expected, mean)


def _add(law: Float64, p: Callable[[Prefix], Float64], prefix: Prefix, mass: float) -> None:
    """Add mass to all continuations of a prefix, in the target's proportions."""
    if mass == 0:
        return
    if len(prefix) == law.ndim:
        law[prefix] += mass
        return
    for token, probability in enumerate(p(prefix)):
        _add(law, p, (*prefix, token), mass * float(probability))


def total_variation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return half the sum of absolute differences."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum() / 2)


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of counts against a law."""

    statistic: float
    degrees: int
    p_value: float


def _cells(law: Float64, trials: float, least: float) -> list[npt.NDArray[np.int64]]:
    """Group cells, the rarest together, until each group is expected `least` times."""
    groups: list[npt.NDArray[np.int64]] = []
    group: list[int] = []
    mass = 0.0
    for cell in np.argsort(law, kind="stable"):
        group.append(int(cell))
        mass += float(law[cell])
        if mass * trials >= least:
            groups.append(np.array(group))
            group, mass = [], 0.0
    if group:
        if not groups:
            raise ValueError(f"{trials:.0f} trials are too few for one cell of {least} expected")
        groups[-1] = np.concatenate([groups[-1], group])
    return groups


def chi_square(
    counts: npt.ArrayLike, law: npt.ArrayLike, *, least_expected: float = 50
) -> ChiSquare:
    """Test counts against a law; rare cells are pooled.

    Parameters
    ----------
    counts
        Integers, any shape.
    law
        Probabilities, the same shape.
    least_expected
        Cells are pooled until each is expected so often.

    Raises
    ------
    ValueError
        If shapes differ, or something was counted that has probability 0: that needs no test.
    """
    n, p = np.asarray(counts, np.int64).ravel(), np.asarray(law, np.float64).ravel()
    if n.shape != p.shape:
        raise ValueError(f"{n.size} counts, but {p.size} probabilities")
    impossible = np.flatnonzero((p == 0) & (n > 0))
    if impossible.size:
        raise ValueError(f"cell {impossible[0]} has probability 0 and was seen {n[impossible[0]]}x")
    trials = float(n.sum())
    groups = _cells(p, trials, least_expected)
    observed = np.array([n[g].sum() for g in groups], np.float64)
    expected = np.array([p[g].sum() for g in groups]) * trials
    statistic = float(((observed - expected) ** 2 / expected).sum())
    degrees = len(groups) - 1
    return ChiSquare(statistic, degrees, chi_square_tail(statistic, degrees) if degrees else 1.0)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square variable exceeds a value."""
    # The regularised upper incomplete gamma function: its series below the mean, else a fraction.
    a, x = degrees / 2, statistic / 2
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for k in itertools.count(1):
            term *= x / (a + k)
            total += term
            if term < total * 1e-16:
                return max(0.0, 1 - scale * total)
    b, c = x + 1 - a, 1e300
    d = fraction = 1 / b
    for k in itertools.count(1):
        step = -k * (k - a)
        b += 2
        d = 1 / (step * d + b)
        c = b + step / c
        fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return min(1.0, scale * fraction)


def chi_square_critical(degrees: int, alpha: float) -> float:
    """Return the value that a chi-square variable exceeds with probability alpha."""
    low, high = 0.0, 10.0 * degrees + 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, degrees) > alpha else (low, middle)
    return high


def trials_needed(
    law: npt.ArrayLike, biased: npt.ArrayLike, *, alpha: float = 1e-9, power: float = 0.999
) -> int:
    """Return how many trials let `chi_square` tell a biased law from the right one.

    Parameters
    ----------
    law, biased
        What is claimed, and what might be true instead.
    alpha
        Probability of a false alarm.
    power
        Probability of seeing the bias; the statistic's law is approximated by a normal one.

    Raises
    ------
    ValueError
        If the laws are equal.
    """
    p, q = (np.asarray(x, np.float64).ravel() for x in (law, biased))
    support = p > 0
    effect = float(((q - p)[support] ** 2 / p[support]).sum())
    if effect <= 0:
        raise ValueError("the laws are equal: no number of trials tells them apart")
    degrees = int(support.sum()) - 1
    critical = chi_square_critical(degrees, alpha)
    z = _normal_quantile(power)
    # Non-central chi-square: mean degrees + n * effect, variance 2 * degrees + 4 * n * effect.
    low, high = 1, 2
    while not _seen(high * effect, degrees, critical, z):
        low, high = high, high * 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (
            (low, middle) if _seen(middle * effect, degrees, critical, z) else (middle, high)
        )
    return high


def _seen(shift: float, degrees: int, critical: float, z: float) -> bool:
    return degrees + shift - z * math.sqrt(2 * degrees + 4 * shift) > critical


def _normal_quantile(probability: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        below = 0.5 * math.erfc(-middle / math.sqrt(2)) < probability
        low, high = (middle, high) if below else (low, middle)
    return high


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
    "JointLaw",
    "Model",
    "Outcome",
    "acceptance_of",
    "chi_square",
    "chi_square_critical",
    "chi_square_tail",
    "expected_emitted",
    "joint_law",
    "path_tokens",
    "total_variation",
    "tree_drafter",
    "trials_needed",
]
