"""Sums of the softmax weights of each token, by which token-dropping methods rank tokens."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .paged_kv_cache import PagedKVCache

Sums = npt.NDArray[np.float32]


class AttentionMass:
    """Adds up the softmax weights of each token of a cache, while a ``with`` block runs.

    H2O (Zhang et al. 2023, arXiv:2306.14048, section 4) keeps the tokens with the largest sums over
    all later tokens; SnapKV (Li et al. 2024, arXiv:2404.14469, section 4) keeps those with the
    largest sums over the ``last`` tokens of the prompt.

    Sums belong to columns. Call :meth:`keep` with the remaining columns after
    :meth:`kvctl.PagedKVCache.evict`, and after a commit that keeps some of a tree's nodes.

    Parameters
    ----------
    cache : PagedKVCache
        The cache of any model.
    heads : {"kv", "qo"}
        Sums for each KV head, over its query heads too, or for each query head.
    last : int
        Count only the last so many new tokens of each step; 0: all.

    Examples
    --------
    >>> with kvctl.AttentionMass(runner.cache) as mass:
    ...     runner.prefill([0], [prompt])
    >>> heavy = mass[0].sum(axis=(0, 2)).argsort()[-64:]
    >>> recent = range(len(prompt) - 32, len(prompt))
    >>> runner.cache.evict(0, sorted({*heavy, *recent}))
    """

    def __init__(self, cache: PagedKVCache, *, heads: str = "kv", last: int = 0) -> None:
        self._cache = cache
        self._heads = heads
        self._last = last
        self._sums: dict[int, Sums] = {}

    def __enter__(self) -> AttentionMass:
        self._cache.observe_attention(self._add, heads=self._heads, last=self._last)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cache.observe_attention(None)

    def __getitem__(self, seq_id: int) -> Sums:
        """Return the sums of a sequence, (num_layers, columns, heads): the array itself, no copy.

        Raises
        ------
        KeyError
            If no attention of that sequence was seen.
        """
        return self._sums[seq_id]

    def keep(self, seq_id: int, columns: Any) -> None:
        """Drop the sums of all columns but these: ascending indices, or one boolean for each."""
        self._sums[seq_id] = self._sums[seq_id][:, np.asarray(columns)]

    def forget(self, seq_id: int) -> None:
        """Drop the sums of a sequence."""
        self._sums.pop(seq_id, None)

    def _add(self, layer: int, seq_ids: list[int], sums: list[Any]) -> None:
        for seq_id, tensor in zip(seq_ids, sums, strict=True):
            new: Sums = np.asarray(np.from_dlpack(tensor), np.float32)
            total = self._sums.get(seq_id)
            missing = len(new) - (0 if total is None else total.shape[1])
            if total is None:
                total = np.zeros((self._cache.num_layers, *new.shape), np.float32)
            elif missing > 0:
                total = np.pad(total, ((0, 0), (0, missing), (0, 0)))
            total[layer, : len(new)] += new
            self._sums[seq_id] = total
