"""The random numbers of one round, for rules written in Python."""

from __future__ import annotations

from operator import index

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi

_ACCEPT, _RESIDUAL, _TOKEN = 0, 1, 3  # cpp/core/support/rng.h
_NO_NODE = 1 << 27  # indices from here on are those of no node
_LOW = (1 << 32) - 1


class RoundRng:
    """The random numbers of one round of one request, named as those of the shipped rules.

    A number depends on the seed, the request, the position of the round's root, and its key: not
    on the order of the batch, on threads, or on what was drawn before it.

    Parameters
    ----------
    seed, request_id, root_position
        As in ``kvctl.verify``, of one sequence.
    """

    def __init__(self, seed: int, request_id: int, root_position: int) -> None:
        self._seed, self._request, self._root = seed, request_id, root_position
        self._unnamed = _NO_NODE

    def bernoulli(self, p: float, key: int | None = None) -> bool:
        """Return whether an event of probability p happens.

        Parameters
        ----------
        p
            Its probability.
        key
            The node that the event concerns. Events of one key are one event. Without a key it is
            named by how many came before it in this round.
        """
        return self._uniform(_ACCEPT, self._root, self._index(key)) < p

    def categorical(self, weights: npt.ArrayLike, key: int | None = None) -> int:
        """Return an index drawn in proportion to weights; `key` as in `bernoulli`."""
        return _pick(weights, self._uniform(_RESIDUAL, self._root, self._index(key)))

    def token(self, weights: npt.ArrayLike, depth: int) -> int:
        """Return a token drawn by the noise of its own position, as ``target_only`` draws it.

        Parameters
        ----------
        weights
            (V,) the target's distribution.
        depth
            The depth of the node that the token follows; 0 after the root.
        """
        return _pick(weights, self._uniform(_TOKEN, self._root + 1 + depth, 0))

    def _index(self, key: int | None) -> int:
        if key is None:
            self._unnamed += 1
            return self._unnamed
        if not 0 <= index(key) < _NO_NODE:
            raise ValueError(f"key must be a node, got {key}")
        return index(key)

    def _uniform(self, purpose: int, position: int, item: int) -> float:
        words = ffi.verify.philox(
            (purpose << 28) | item,
            position & _LOW,
            self._request & _LOW,
            (self._request >> 32) & _LOW,
            self._seed & _LOW,
            (self._seed >> 32) & _LOW,
        )
        bits = (int(words[1]) << 32) | int(words[0])
        return (bits >> 11) * 2.0**-53


def _pick(weights: npt.ArrayLike, uniform: float) -> int:
    w = np.asarray(weights, np.float64)
    total = w.sum()
    if not (w >= 0).all() or not 0 < total < np.inf:
        raise ValueError(f"weights must be non-negative with a positive sum, got {w}")
    sums = np.cumsum(w)
    token = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    return min(token, int(np.flatnonzero(w)[-1]))  # rounding may reach the end of the sums
