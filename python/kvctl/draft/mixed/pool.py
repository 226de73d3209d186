"""How likely a token is of which two drafters say how likely they believe it to be."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

# Log-odds of a constant, of the drafter that proposes a token and of the one that is asked about
# it: what is believed before anything was seen, and how firmly.
_WEIGHTS = (1.0, 0.7, 0.5)
_FIRMNESS = (2.0, 10.0, 10.0)
_MEMORY = 200.0
_SMALLEST = 1e-5


class OpinionPool:
    """A logarithmic opinion pool of two drafters, with weights that are learnt.

    The odds that a token is right are the product of powers of the odds that each of the two says,
    and a constant. A drafter whose odds say nothing has a power of 0; odds of two drafters that
    know the same count as those of one. The exponents are those of a logistic regression, which a
    Newton step follows with each token that was tried. Old trials fade.

    Parameters
    ----------
    memory
        Trials that count as much as all older ones.
    """

    def __init__(self, memory: float = _MEMORY) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._prior = np.array(_WEIGHTS)
        self._firmness = np.diag(_FIRMNESS)
        self._weights = self._prior.copy()
        self._information = self._firmness.copy()

    def rate(self, proposed: float, asked: float) -> float:
        """Return the probability that a token is right, by what the two drafters say."""
        constant, first, second = self._weights.tolist()
        return _sigmoid(constant + first * _log_odds(proposed) + second * _log_odds(asked))

    def observe(self, proposed: float, asked: float, hit: bool) -> None:
        """Learn whether a token was right."""
        x: npt.NDArray[np.float64] = np.array([1.0, _log_odds(proposed), _log_odds(asked)])
        rate = _sigmoid(float(self._weights @ x))
        faded = (1.0 - self._keep) * self._firmness
        self._information = (
            self._keep * self._information + faded + rate * (1.0 - rate) * np.outer(x, x)
        )
        towards = (float(hit) - rate) * x + faded @ (self._prior - self._weights)
        self._weights += np.linalg.solve(self._information, towards)


def _log_odds(probability: float) -> float:
    p = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    return math.log(p / (1.0 - p))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else 1.0 - 1.0 / (1.0 + math.exp(x))
