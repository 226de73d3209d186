"""N-grams by their first token, the newest few of each."""

from __future__ import annotations

from collections.abc import Sequence

# First tokens that are kept; the ones that were not used for longest go first.
_MOST_TOKENS = 50_000


class NgramPool:
    """N-grams by their first token; of each first token the newest few.

    Parameters
    ----------
    n
        Their length.
    most
        N-grams that are kept of one first token.
    """

    def __init__(self, n: int, most: int) -> None:
        self._n, self._most = n, most
        self._tails: dict[int, dict[tuple[int, ...], None]] = {}  # the newest last

    def __len__(self) -> int:
        return sum(map(len, self._tails.values()))

    def add(self, ngram: Sequence[int]) -> None:
        """Add an n-gram, or make it the newest of its first token."""
        first, tail = ngram[0], tuple(ngram[1:])
        tails = self._tails.pop(first, {})
        tails.pop(tail, None)
        tails[tail] = None
        if len(tails) > self._most:
            del tails[next(iter(tails))]
        self._tails[first] = tails
        if len(self._tails) > _MOST_TOKENS:
            del self._tails[next(iter(self._tails))]

    def add_all(self, tokens: Sequence[int]) -> None:
        """Add all n-grams of a text."""
        for i in range(len(tokens) - self._n + 1):
            self.add(tokens[i : i + self._n])

    def after(self, token: int) -> list[tuple[int, ...]]:
        """Return what followed a token in its n-grams, the newest first."""
        return list(reversed(self._tails.get(token, {})))
