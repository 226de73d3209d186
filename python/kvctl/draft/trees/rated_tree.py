"""A tree and what it promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...tree import TokenTree


@dataclass(frozen=True, eq=False)
class RatedTree:
    """A tree of drafted tokens, and what verifying it is expected to bring.

    Attributes
    ----------
    tree : TokenTree
        The root and the drafted nodes.
    rates : numpy.ndarray
        (len(tree),) float64, the probability that a node and all above it are right; the root's
        is 1.
    gain : float
        The tokens per second of a round over those of plain decoding, under the cost that the
        builder was given; without one every round is taken to cost the same.
    nodes : numpy.ndarray or None
        (len(tree),) int32, where the nodes come from in the larger tree that this one was cut
        from; None where there is none.
    """

    tree: TokenTree
    rates: npt.NDArray[np.float64]
    gain: float
    nodes: npt.NDArray[np.int32] | None = None

    @property
    def expected_tokens(self) -> float:
        """The mean number of tokens that a round emits, the one behind the drafts included."""
        return float(self.rates.sum())
