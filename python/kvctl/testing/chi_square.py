"""Pearson's test of counts against a distribution, and the trials that it needs to find a bias.

Needs SciPy: ``pip install kvctl[testing]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def _scipy_stats() -> Any:
    from scipy import stats  # type: ignore[import-untyped]  # here: enumeration does without it

    return stats


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of counts against a distribution."""

    statistic: float
    degrees: int
    p_value: float


def _cells(distribution: Float64, trials: float, least: float) -> list[npt.NDArray[np.int64]]:
    """Group cells, the rarest together, until each group is expected `least` times."""
    groups: list[npt.NDArray[np.int64]] = []
    group: list[int] = []
    mass = 0.0
    for cell in np.argsort(distribution, kind="stable"):
        group.append(int(cell))
        mass += float(distribution[cell])
        if mass * trials >= least:
            groups.append(np.array(group))
            group, mass = [], 0.0
    if group:
        if not groups:
            raise ValueError(f"{trials:.0f} trials are too few for one cell of {least} expected")
        groups[-1] = np.concatenate([groups[-1], group])
    return groups


def chi_square(
    counts: npt.ArrayLike, distribution: npt.ArrayLike, *, least_expected: float = 50
) -> ChiSquare:
    """Test counts against a distribution; rare cells are pooled.

    Parameters
    ----------
    counts
        Integers, any shape.
    distribution
        Probabilities, the same shape.
    least_expected
        Cells are pooled until each is expected so often.

    Raises
    ------
    ValueError
        If shapes differ, or a cell of probability 0 was counted.
    """
    n, p = np.asarray(counts, np.int64).ravel(), np.asarray(distribution, np.float64).ravel()
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
    p_value = float(_scipy_stats().chi2.sf(statistic, degrees)) if degrees else 1.0
    return ChiSquare(statistic, degrees, p_value)


def trials_needed(
    distribution: npt.ArrayLike, biased: npt.ArrayLike, *, alpha: float = 1e-9, power: float = 0.999
) -> int:
    """Return how many trials let `chi_square` tell a biased distribution from the right one.

    Parameters
    ----------
    distribution, biased
        The claimed distribution, and the one to tell apart from it.
    alpha
        Probability of a false alarm.
    power
        Probability of finding the bias; the statistic's distribution is approximated by a normal
        one.

    Raises
    ------
    ValueError
        If the distributions are equal.
    """
    p, q = (np.asarray(x, np.float64).ravel() for x in (distribution, biased))
    support = p > 0
    effect = float(((q - p)[support] ** 2 / p[support]).sum())
    if effect <= 0:
        raise ValueError("the distributions are equal: no number of trials tells them apart")
    degrees = int(support.sum()) - 1
    stats = _scipy_stats()
    critical, z = float(stats.chi2.isf(alpha, degrees)), float(stats.norm.ppf(power))
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
