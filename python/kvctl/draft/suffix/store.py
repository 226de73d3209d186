"""Many texts, to look up how a text that ends like this went on elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import _core
from ..._ffi.integers import Int32Array, one_int32, to_int32


@dataclass(frozen=True, eq=False)
class Continuations:
    """The most frequent continuations of a context, as the arrays of a `TokenTree`.

    Attributes
    ----------
    tokens, parents : numpy.ndarray
        (n,) int32; node 0 is the last token of the context. Any prefix is the best tree of its
        size.
    shares : numpy.ndarray
        (n,) float64, which part of the occurrences went on along the path to a node.
    match_length : int
        How many last tokens of the context the occurrences have before them; 0 where there are
        none, and then node 0 is alone.
    """

    tokens: Int32Array
    parents: Int32Array
    shares: npt.NDArray[np.float64]
    match_length: int


class SuffixStore:
    """Texts of bounded total length, and an index of all their places by what stands before.

    What followed the longest suffix of a context that occurs in any text is a draft of what follows
    the context, each continuation as likely as it was frequent (SuffixDecoding, arXiv 2411.04975).
    All requests and earlier answers can share one store.

    Parameters
    ----------
    capacity
        Tokens that are kept, each text counted as one more than it has. The oldest texts make room
        for new ones.

    Raises
    ------
    ValueError
        If the capacity is not in [2, 2**31].

    Notes
    -----
    Threads may use a store at the same time. A lookup waits while another thread adds texts, which
    takes about a microsecond for a token, or seconds for millions that are added at once.

    Examples
    --------
    >>> store = kvctl.draft.SuffixStore(1000)
    >>> store.extend([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5]])
    >>> found = store.continuations([7, 2, 3], max_nodes=8, max_depth=8)
    >>> found.match_length, found.tokens.tolist(), found.shares.round(2).tolist()
    (2, [3, 5, 4], [1.0, 0.67, 0.33])
    """

    #: Longer matches count as this long.
    MAX_MATCH = _core.SuffixStore.MAX_MATCH

    def __init__(self, capacity: int = 1_000_000) -> None:
        self._core = _core.SuffixStore(capacity)

    @property
    def capacity(self) -> int:
        """The most tokens that are kept."""
        return self._core.capacity

    @property
    def num_tokens(self) -> int:
        """The tokens of all texts."""
        return self._core.num_tokens

    @property
    def num_texts(self) -> int:
        """The texts that are there."""
        return self._core.num_texts

    @property
    def nbytes(self) -> int:
        """Bytes of memory, allocated but unused ones included."""
        return self._core.nbytes

    def add(self, tokens: Any) -> None:
        """Add a text, (n,) integers; an empty one adds nothing.

        Of a text that is longer than the capacity, the end is kept.

        Raises
        ------
        ValueError
            If a token is negative; the store is unchanged.
        TypeError
            If they are no integers.
        """
        self._core.add([to_int32(tokens, "tokens")])

    def extend(self, texts: Iterable[Any]) -> None:
        """Add many texts, the newest last; faster than one by one. Raises as `add` does."""
        self._core.add([to_int32(text, f"texts[{i}]") for i, text in enumerate(texts)])

    def longest(self, context: Any) -> int:
        """Return how many last tokens of a context, (n,) integers, occur before another token."""
        return self._core.longest(to_int32(context, "context"))

    def continuations(self, context: Any, *, max_nodes: int, max_depth: int) -> Continuations:
        """Return the most frequent continuations of the context's longest suffix that occurs.

        Of more than a few dozen occurrences, as many neighbours in the index are counted.

        Parameters
        ----------
        context
            (n,) integers; only the last `MAX_MATCH` matter.
        max_nodes, max_depth
            Of the tree, its root not counted.

        Raises
        ------
        ValueError
            If the context is empty or a limit is negative.
        """
        return Continuations(
            *self._core.tree(
                to_int32(context, "context"),
                one_int32(max_nodes, "max_nodes"),
                one_int32(max_depth, "max_depth"),
            )
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the texts to a file, which others see whole or not at all.

        Raises
        ------
        RuntimeError
            If it cannot be written; a file that was there stays.
        """
        self._core.save(os.fspath(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, capacity: int | None = None) -> SuffixStore:
        """Read what `save` wrote, and index it.

        The file is not trusted: sizes are compared with the file's before memory is taken, then its
        checksum.

        Parameters
        ----------
        path
            The file.
        capacity
            Of the store; by default the one that was saved. The newest texts that fit are kept.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If it is damaged or no such file, or if the capacity is not in [2, 2**31].
        """
        store = cls.__new__(cls)
        store._core = _core.SuffixStore.load(os.fspath(path), capacity)
        return store

    def __repr__(self) -> str:
        return f"SuffixStore({self.num_texts} texts, {self.num_tokens} of {self.capacity} tokens)"
