"""How much of what was drafted was accepted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..drawing.rate_plot import draw_rates
from .result import Verification

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def _sum(a: Int64, b: Int64) -> Int64:
    """Add two arrays of different lengths."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _none() -> Int64:
    return np.zeros(0, np.int64)


@dataclass
class AcceptanceStats:
    """Acceptance over any number of rounds. Two of them can be added.

    Attributes
    ----------
    reached, accepted : numpy.ndarray
        (D,) int64: how often a drafted token at depth 1 ... D was up for acceptance, and how often
        one was accepted.
    emitted : numpy.ndarray
        int64, entry n: rounds that emitted n tokens.

    Examples
    --------
    >>> stats = kvctl.verification.AcceptanceStats()
    >>> stats.add(result)
    >>> print(stats.table())
    """

    reached: Int64 = field(default_factory=_none)
    accepted: Int64 = field(default_factory=_none)
    emitted: Int64 = field(default_factory=_none)

    def add(self, result: Verification) -> None:
        """Count one verify call: a round of each of its sequences."""
        reached, accepted = result.acceptance
        self.reached = _sum(self.reached, reached)
        self.accepted = _sum(self.accepted, accepted)
        self.emitted = _sum(self.emitted, np.bincount(result.num_emitted).astype(np.int64))

    def __add__(self, other: AcceptanceStats) -> AcceptanceStats:
        return AcceptanceStats(
            _sum(self.reached, other.reached),
            _sum(self.accepted, other.accepted),
            _sum(self.emitted, other.emitted),
        )

    @property
    def rounds(self) -> int:
        """How many rounds were counted."""
        return int(self.emitted.sum())

    @property
    def rates(self) -> Float64:
        """(D,) acceptance at each depth, given that it was reached; NaN where it never was."""
        with np.errstate(invalid="ignore"):
            rates: Float64 = self.accepted / np.where(self.reached > 0, self.reached, np.nan)
        return rates

    @property
    def mean_emitted(self) -> float:
        """Mean tokens of a round; NaN without rounds."""
        if self.rounds == 0:
            return math.nan
        return float(self.emitted @ np.arange(len(self.emitted)) / self.rounds)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Return a confidence interval of `mean_emitted`: z standard errors either way."""
        if self.rounds < 2:
            return -math.inf, math.inf
        n, mean = np.arange(len(self.emitted)), self.mean_emitted
        variance = float(self.emitted @ (n - mean) ** 2) / (self.rounds - 1)
        half = z * math.sqrt(variance / self.rounds)
        return mean - half, mean + half

    def speedup(self, *, draft_cost: float, verify_cost: float) -> float:
        """Return how many times faster than plain decoding rounds like these are.

        Parameters
        ----------
        draft_cost, verify_cost
            What drafting and verifying one round cost, a plain decoding step being 1.
        """
        if not draft_cost + verify_cost > 0:
            raise ValueError(f"a round must cost something, got {draft_cost} and {verify_cost}")
        return self.mean_emitted / (draft_cost + verify_cost)

    def table(self) -> str:
        """Return the figures as text."""
        low, high = self.interval()
        lines = [
            f"rounds        {self.rounds}",
            f"tokens/round  {self.mean_emitted:.3f}  [{low:.3f}, {high:.3f}] with 95 % confidence",
            "depth   reached  accepted   rate",
        ]
        for depth, (reached, accepted, rate) in enumerate(
            zip(self.reached, self.accepted, self.rates, strict=True), start=1
        ):
            lines.append(f"{depth:5d} {reached:9d} {accepted:9d}  {rate:5.3f}")
        return "\n".join(lines)

    def plot(self, *, label: str | None = None, ax: Any = None) -> Any:
        """Draw acceptance by depth with matplotlib (``pip install kvctl[plot]``).

        The bars are 95 % confidence intervals. Drawn several times on the same axes, curves differ
        by marker and line, and a legend names each.

        Parameters
        ----------
        label
            Name of the curve in the legend, before its tokens per round.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return draw_rates(
            self.rates,
            self.reached,
            figure=f"{self.mean_emitted:.2f} tokens per round" if self.rounds else "no rounds",
            label=label,
            ax=ax,
        )
