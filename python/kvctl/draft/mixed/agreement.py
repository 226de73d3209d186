"""What it says of a drafted token that other drafters propose it too, or another one."""

from __future__ import annotations

from collections.abc import Sequence

from .pool import OpinionPool

_MEMORY = 100.0
_PRIOR = 4.0  # hits, and misses, that were as expected before anything was seen


class Agreement:
    """How much likelier or less likely tokens are right by who else proposes them; it is learnt.

    Each drafter rates its tokens by what it knows itself. Where two of them extend the same path,
    a token that both propose is right more often than either says, and one that only one of them
    has is right less often. Nodes of a kind share a factor of their odds, from the hits that their
    rates expected and those that came. Old trials fade.

    The kinds are the number of a drafter, for its nodes that others have no equal of; `BOTH`; and
    `ALONE` for nodes where no other drafter has any, which are right as often as their drafter
    says. `ASKED` are nodes that another drafter than theirs has an `Opinion` of, whether it has
    them or not: their rates are those of an `OpinionPool`.
    """

    BOTH, ALONE, ASKED = -1, -2, -3

    def __init__(self) -> None:
        self._sums: dict[int, _Sums] = {}
        self._pool = OpinionPool()

    def odds(self, kind: int) -> float:
        """Return the factor of the odds of a kind of nodes."""
        sums = self._sums.get(kind)
        return 1.0 if kind == self.ALONE or sums is None else sums.odds

    def rate(self, kind: int, expected: float, opinion: float = 0.0) -> float:
        """Return the probability that a node is right which its drafters expect so much of.

        `opinion` is what the drafter that was asked says of it.
        """
        if kind == self.ASKED:
            return self._pool.rate(expected, opinion)
        odds = self.odds(kind)
        return odds * expected / (odds * expected + 1.0 - expected)

    def observe(self, kind: int, expected: float, hit: bool, opinion: float = 0.0) -> None:
        """Learn whether a node of a kind was right."""
        if kind == self.ASKED:
            self._pool.observe(expected, opinion, hit)
        elif kind != self.ALONE:
            self._sums.setdefault(kind, _Sums()).add(expected, hit)


class _Sums:
    """Faded sums over the trials of a kind."""

    def __init__(self) -> None:
        self._trials = self._hits = self._expected = 0.0

    @property
    def odds(self) -> float:
        missed, expected = self._trials - self._hits, self._trials - self._expected
        hits = (self._hits + _PRIOR) / (self._expected + _PRIOR)
        return hits * (expected + _PRIOR) / (missed + _PRIOR)

    def add(self, expected: float, hit: bool) -> None:
        keep = 1.0 - 1.0 / _MEMORY
        self._trials = keep * self._trials + 1.0
        self._hits = keep * self._hits + float(hit)
        self._expected = keep * self._expected + expected


def kinds_of(parents: Sequence[int], places: Sequence[Sequence[int]]) -> list[int]:
    """Return the kind of each node of a merged tree; of its root it says nothing.

    Parameters
    ----------
    parents
        Of the merged tree's nodes.
    places
        Where the nodes of each part are in it, the root's first; -1 for those that were left out.
    """
    kinds, extended = [Agreement.ALONE] * len(parents), [0] * len(parents)
    owners: list[list[int]] = [[] for _ in parents]
    for part, mine in enumerate(places):
        has = {node for node in mine if node > 0}
        for parent in {parents[node] for node in has}:
            extended[parent] += 1
        for node in has:
            owners[node].append(part)
    for node in range(1, len(parents)):
        if len(owners[node]) > 1:
            kinds[node] = Agreement.BOTH
        elif extended[parents[node]] > 1:
            kinds[node] = owners[node][0]
    return kinds
