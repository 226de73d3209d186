"""Random pairs of a target and a drafter over a small vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..testing.distribution import Float64, Prefix


@dataclass(frozen=True)
class RandomModel:
    """A target and a drafter whose distributions are random after every prefix.

    Attributes
    ----------
    seed
        Names the pair.
    vocab
        Tokens.
    agreement
        0: the drafter knows nothing of the target; 1: it is the target.
    sharpness
        Standard deviation of the logits.
    """

    seed: int
    vocab: int = 4
    agreement: float = 0.6
    sharpness: float = 1.5

    def target(self, prefix: Prefix) -> Float64:
        """Return the target's distribution after a prefix, (vocab,)."""
        return _softmax(self._logits(0, prefix))

    def draft(self, prefix: Prefix) -> Float64:
        """Return the drafter's distribution after a prefix, (vocab,)."""
        share = self.agreement
        own = np.sqrt(1 - share**2) * self._logits(1, prefix)
        return _softmax(share * self._logits(0, prefix) + own)

    def _logits(self, which: int, prefix: Prefix) -> Float64:
        rng = np.random.default_rng([self.seed, which, len(prefix), *prefix])
        drawn: Float64 = self.sharpness * rng.standard_normal(self.vocab)
        return drawn


def _softmax(logits: Float64) -> Float64:
    weights = np.exp(logits - logits.max())
    probs: Float64 = weights / weights.sum()
    return probs
