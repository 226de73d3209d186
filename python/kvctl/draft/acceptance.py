"""How likely a copied token is right: learnt from every token that is emitted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

# Match lengths that share an estimate: [1], [2], ... [8], [9, 12], ...
_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 25, 33, 49)
# What is believed of a first choice before anything was seen, and how many trials that is worth.
_PRIOR = (0.15, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9, 0.95, 0.95)
_PRIOR_TRIALS = 4.0
# A second or third choice rarely is the one.
_PRIOR_OF_RANK = (1.0, 0.2, 0.1)
_LAST_RANK = len(_PRIOR_OF_RANK) - 1

# Which of the lengths above a match length counts as, by match length; longer ones as the last.
_BUCKET = tuple(max(0, bisect_right(_LENGTHS, length) - 1) for length in range(_LENGTHS[-1] + 1))


class Acceptance:
    """Acceptance rates of copied tokens by how much agrees before them.

    A token that continues a match of length m is right about as often as any other that does,
    whether it is drafted first or follows m - 1 drafted tokens that were right. So one table over
    match lengths serves all positions of a draft, and each emitted token tries it for free,
    drafted or not: there is nothing to explore. Old trials fade.

    Parameters
    ----------
    memory
        Trials of a kind that count as much as all older ones.
    """

    def __init__(self, *, memory: float = 40.0) -> None:
        if memory <= 1:
            raise ValueError(f"memory must be more than 1 trial, got {memory}")
        self._keep = 1.0 - 1.0 / memory
        self._hits = [[0.0] * len(_LENGTHS) for _ in _PRIOR_OF_RANK]
        self._trials = [[0.0] * len(_LENGTHS) for _ in _PRIOR_OF_RANK]
        self._rates = [[prior * part for prior in _PRIOR] for part in _PRIOR_OF_RANK]

    def rate(self, match_length: int, rank: int = 0) -> float:
        """Return the estimated probability that a token is right.

        Parameters
        ----------
        match_length
            How many tokens before it agree with its source, at least 1.
        rank
            0 for the first choice at its place, 1 for the second, ...
        """
        rank, at = _kind(match_length, rank)
        return self._rates[rank][at]

    def path_rates(
        self, parents: Sequence[int], ranks: Sequence[int], match_lengths: Sequence[int]
    ) -> list[float]:
        """Return, for each node of a tree, the probability that it and all above it are right.

        The root's is 1.
        """
        rates, tables, longest = [1.0], self._rates, _LENGTHS[-1]
        for node in range(1, len(parents)):
            length, rank = match_lengths[node], ranks[node]
            table = tables[rank if rank < _LAST_RANK else _LAST_RANK]
            bucket = _BUCKET[length if length < longest else longest]
            rates.append(rates[parents[node]] * table[bucket])
        return rates

    def observe(self, match_length: int, rank: int, hit: bool) -> None:
        """Learn whether a token was right."""
        rank, at = _kind(match_length, rank)
        trials = self._keep * self._trials[rank][at] + 1.0
        hits = self._keep * self._hits[rank][at] + float(hit)
        self._trials[rank][at], self._hits[rank][at] = trials, hits
        prior = _PRIOR_TRIALS * _PRIOR[at] * _PRIOR_OF_RANK[rank]
        self._rates[rank][at] = (hits + prior) / (trials + _PRIOR_TRIALS)


def _kind(match_length: int, rank: int) -> tuple[int, int]:
    """Return the row and the column of the tables that a token belongs to."""
    return min(rank, _LAST_RANK), _BUCKET[min(match_length, _LENGTHS[-1])]
