"""The most likely tokens of many rows of logits, and their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import to_host

_BLOCK = 64


def top_tokens(logits: Any, k: int) -> npt.NDArray[np.int32]:
    """Return (R, k) int32, the tokens with the largest logits of each row, the largest first.

    Parameters
    ----------
    logits
        (R, V), on any device.
    k
        At most V.
    """
    rows = to_host(logits)
    count, vocab = rows.shape
    if k == 1:
        return np.asarray(rows.argmax(axis=1)[:, None], np.int32)
    blocks = vocab // _BLOCK
    if blocks <= k:
        return _sorted(rows, np.broadcast_to(np.arange(vocab), rows.shape), k)
    # The k largest lie in the k blocks with the largest maxima, or behind the last block. Tokens of
    # a block are at equal distances, because NumPy is quick to compare rows of blocks.
    whole = blocks * _BLOCK
    maxima = rows[:, :whole].reshape(count, _BLOCK, blocks).max(axis=1)
    best = np.argpartition(-maxima, k - 1, axis=1)[:, :k]
    inside = (best[:, :, None] + blocks * np.arange(_BLOCK)).reshape(count, -1)
    behind = np.broadcast_to(np.arange(whole, vocab), (count, vocab - whole))
    tokens = np.concatenate([inside, behind], axis=1)
    return _sorted(rows[_every(count), tokens], tokens, k)


def probabilities(
    logits: npt.NDArray[Any], tokens: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return (R, k), the softmax of each row (R, V) at some tokens (R, k)."""
    largest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - largest, dtype=np.float32).sum(axis=1, dtype=np.float64)
    at = logits[_every(len(logits)), tokens] - largest
    return np.asarray(np.exp(at, dtype=np.float64) / total[:, None])


def _sorted(values: npt.NDArray[Any], tokens: npt.NDArray[Any], k: int) -> npt.NDArray[np.int32]:
    """Return the tokens of the k largest values of each row, the largest first."""
    if values.shape[1] > k:
        best = np.argpartition(-values, k - 1, axis=1)[:, :k]
        every = _every(len(values))
        values, tokens = values[every, best], tokens[every, best]
    order = np.lexsort((tokens, -values), axis=1)
    return np.asarray(tokens[_every(len(tokens)), order], np.int32)


def _every(count: int) -> npt.NDArray[np.int64]:
    """Return (count, 1), all rows; `np.take_along_axis` takes twice as long."""
    return np.arange(count)[:, None]


def choices(nodes: Sequence[int], logits: Any) -> dict[int, int]:
    """Return the most likely token after each of the nodes that rows of logits belong to."""
    return dict(zip(nodes, top_tokens(logits, 1)[:, 0].tolist(), strict=True))
