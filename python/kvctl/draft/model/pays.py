"""Whether a draft model's own time is worth what its drafts bring."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from ..budget import Budget
from .growing_tree import GrowingTree

_MARGIN = 1.02  # the least gain that is worth drafting
_FIRST_REST, _LONGEST_REST = 4, 64
_DEEPEST = 16


class DraftingPays:
    """Compares what a level of a draft costs with the tokens that it is expected to bring.

    The loop's budget knows what verification costs; the time of the draft model comes before it,
    for each level of the tree. Where no depth pays, rounds go by without drafts, and it is tried
    again after 4, 8, ... 64 of them.
    """

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=9)  # seconds
        self._rest = 0
        self._next_rest = _FIRST_REST

    def observe_level(self, seconds: float) -> None:
        """Learn what it takes to forward a level of the trees."""
        self._levels.append(seconds)

    def worthwhile(self, budget: Budget, size: int, rate: float) -> bool:
        """Return whether to draft at all in a round of `size` texts.

        `rate` is the share of drafted tokens that are right.
        """
        if self._rest > 0:
            self._rest -= 1
            return False
        level = self._level(budget, size)
        if level is None or self._best_gain(budget, size, rate, level) >= _MARGIN:
            self._next_rest = _FIRST_REST
            return True
        self._rest = self._next_rest
        self._next_rest = min(_LONGEST_REST, 2 * self._next_rest)
        return True  # once more, to learn whether it is still so

    def another_level(
        self, budget: Budget, size: int, trees: Sequence[GrowingTree], rate: float
    ) -> bool:
        """Return whether one more level promises more tokens per second than without it."""
        level = self._level(budget, size)
        if level is None:
            return True
        nodes = sum(len(tree) - 1 for tree in trees)
        depth = max(map(_depth, trees))
        emitted = size + sum(sum(tree.rates) - 1.0 for tree in trees)
        added = rate * sum(max(tree.rates[node] for node in tree.frontier) for tree in trees)
        now, then = budget.cost(size + nodes), budget.cost(size + nodes + len(trees))
        cost = now / budget.cost(size) + depth * level
        more = (then - now) / budget.cost(size) + level
        return added * cost > emitted * more

    def _level(self, budget: Budget, size: int) -> float | None:
        """Return what a level costs in plain steps of the batch; None while it is not known."""
        if not self._levels or not budget.cost.calibrated:
            return None
        return median(self._levels) / (budget.cost.seconds_per_step * budget.cost(size))

    @staticmethod
    def _best_gain(budget: Budget, size: int, rate: float, level: float) -> float:
        best, emitted, path = 0.0, 1.0, 1.0
        for depth in range(1, _DEEPEST + 1):
            path *= rate
            emitted += path
            cost = budget.cost(size * (1 + depth)) / budget.cost(size) + depth * level
            best = max(best, emitted / cost)
        return best


def _depth(tree: GrowingTree) -> int:
    """Return the depth of the frontier."""
    node, depth = tree.frontier[0], 0
    while node > 0:
        node, depth = tree.parents[node], depth + 1
    return depth
