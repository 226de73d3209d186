"""How likely a drafted token is right, by the probability that its drafter gave it."""

from __future__ import annotations

import math

_BINS = 12
_PRIOR_TRIALS = 4.0
_SPREAD = 1.2  # log-odds in a bin
_SMALLEST = 1e-6


class Confidence:
    """Acceptance rates by the drafter's own probability; they are learnt, and old trials fade.

    A drafter's probabilities say which of its tokens are better, but seldom how good they are: it
    may be sure of what the target does not take. Tokens of about the same log-odds share an
    estimate, which starts at what the drafter says; between two estimates it changes evenly, so
    that the likelier of two tokens seldom counts as much as the other.

    Parameters
    ----------
    memory
        Trials of a kind that count as much as all older ones.
    """

    def __init__(self, *, memory: float = 100.0) -> None:
        if memory <= 1:
            raise ValueError(f"memory must be more than 1 trial, got {memory}")
        self._keep = 1.0 - 1.0 / memory
        self._hits = [0.0] * _BINS
        self._trials = [0.0] * _BINS

    def rate(self, probability: float) -> float:
        """Return the estimated probability that a token of that probability is right."""
        prior = _PRIOR_TRIALS * probability
        place = _place(probability) - 0.5  # of the estimates, which belong to the middle of a bin
        at = min(max(math.floor(place), 0), _BINS - 2)
        share = min(max(place - at, 0.0), 1.0)
        hits, trials = self._hits, self._trials
        low = (hits[at] + prior) / (trials[at] + _PRIOR_TRIALS)
        high = (hits[at + 1] + prior) / (trials[at + 1] + _PRIOR_TRIALS)
        return low + share * (high - low)

    def observe(self, probability: float, hit: bool) -> None:
        """Learn whether a token of that probability was right."""
        at = _bin(probability)
        self._trials[at] = self._keep * self._trials[at] + 1.0
        self._hits[at] = self._keep * self._hits[at] + float(hit)


def _place(probability: float) -> float:
    """Return where a probability is among the bins: from 0 to their number."""
    p = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    return min(max(math.log(p / (1.0 - p)) / _SPREAD + _BINS / 2, 0.0), float(_BINS))


def _bin(probability: float) -> int:
    """Return which estimate a probability belongs to."""
    return min(int(_place(probability)), _BINS - 1)
