"""Whether a draft model's own time is worth what its drafts bring."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from ..budget import Budget
from ..request import Request
from ..round_result import RoundResult
from .growing_tree import GrowingTree

_MARGIN = 1.02  # the least gain that is worth drafting
# What is believed of a drafter before it drafted, and how many plain rounds that is worth; and how
# many rounds weigh as much as all older ones.
_FIRST_GAIN, _FIRST_WEIGHT, _MEMORY = 1.1, 4.0, 48
# Where drafting does not pay, what it may lose of the time of a round to see whether it does again;
# and it is not tried beside drafts of others that promise so much. The first rests are shorter: a
# single round says little, and its timing may have been disturbed.
_TRIALS, _PROMISING = 0.01, 2.0
_FIRST_REST, _LONGER = 16, 4
_TIMINGS = 9


@dataclass
class _Round:
    """A round that is drafted for: its size, and the model's forwards so far."""

    budget: Budget
    size: int
    catch_ups: int = 0
    levels: int = 0
    seconds: float = 0.0


class DraftingPays:
    """Compares the time that a model's drafts take with the tokens that they bring.

    The loop's budget knows what verification costs. The model's time comes before it: a forward
    that brings its cache in step with what was accepted and says what follows, and one for each
    further level of the tree. The gain of drafting is learnt from the rounds that were drafted for:
    the tokens that they promised at learnt rates, over what they took with the model's forwards,
    both in plain rounds.

    Where that is no gain, rounds go by without drafts, as many as a trial's loss is 1 % of; after
    the first trials fewer.
    Where other drafters of the same round promise more (`Budget.beside`), the round is theirs, and
    the model's forwards are spared.
    """

    def __init__(self) -> None:
        self._catch_ups: deque[float] = deque(maxlen=_TIMINGS)  # seconds
        self._levels: deque[float] = deque(maxlen=_TIMINGS)  # seconds
        self._round: _Round | None = None
        self._tokens, self._cost = _FIRST_GAIN * _FIRST_WEIGHT, _FIRST_WEIGHT
        self._tried, self._right = 0.0, 0.0
        self._rest, self._longest_rest = 0, _FIRST_REST

    @property
    def gain(self) -> float:
        """Tokens of a round for the time of a plain one."""
        return self._tokens / self._cost

    @property
    def rate(self) -> float:
        """How often a level of a tree had the right token; 1/2 before any was tried."""
        return (self._right + 1.0) / (self._tried + 2.0)

    def worthwhile(self, budget: Budget, requests: Sequence[Request]) -> bool:
        """Return whether to draft in a round of these texts; where not, it is over for the model.

        Other drafters' promise is the budget's.
        """
        self._round = None
        if not budget.affords(requests):
            return False
        pays = self.gain >= _MARGIN * budget.promised
        if not pays and self._rest > 0:
            self._rest -= 1
            return False
        if not pays and budget.promised >= _PROMISING:
            return False
        self._round = _Round(budget, len(requests))
        return True

    def another_level(self, budget: Budget, size: int, trees: Sequence[GrowingTree]) -> bool:
        """Return whether one more level promises more tokens per second than without it."""
        start, level = self._forwards(budget, size)
        if level == 0.0:  # nothing was timed yet: a first draft is short
            return False
        spent = start + (max(map(_depth, trees)) - 1) * level
        rates = [rate for tree in trees for rate in tree.rates[1:]]
        below = [self.rate * tree.rates[node] for tree in trees for node in tree.frontier]
        more = _best_gain(budget, size, rates + below, spent + level)
        return more > _best_gain(budget, size, rates, spent)

    def observe_catch_up(self, seconds: float, *, counts: bool = True) -> None:
        """Learn what the forward before the first level took.

        One that reads a whole prompt says nothing of those that follow, and does not count.
        """
        if self._round is not None:
            self._round.catch_ups += 1
            self._round.seconds += seconds
        if counts:
            self._catch_ups.append(seconds)

    def observe_level(self, seconds: float) -> None:
        """Learn what it takes to forward a level of the trees."""
        if self._round is not None:
            self._round.levels += 1
            self._round.seconds += seconds
        self._levels.append(seconds)

    def observe_depth(self, tried: int, right: int) -> None:
        """Learn at how many levels of a tree a token came, and at how many it was a node's."""
        keep = (1.0 - 1.0 / 100.0) ** tried
        self._tried, self._right = keep * self._tried + tried, keep * self._right + right

    def observe_round(self, results: Sequence[RoundResult]) -> None:
        """Learn what the model's own drafts brought."""
        one, self._round = self._round, None
        if one is None or not results or not one.budget.cost.calibrated:
            return
        size, cost = len(results), one.budget.cost
        tokens = sum(map(_expected_tokens, results)) / size
        verified = cost(sum(len(result.nodes) for result in results)) / cost(size)
        start, level = self._forwards(one.budget, size)
        took = verified + one.catch_ups * start + one.levels * level
        keep = 1.0 - 1.0 / _MEMORY
        self._tokens, self._cost = keep * self._tokens + tokens, keep * self._cost + took
        took = verified + one.seconds / (cost.seconds_per_step * cost(size))
        loss = max(one.budget.promised * took - tokens, 0.0)
        self._rest = min(math.ceil(loss / _TRIALS), self._longest_rest)
        pays = self.gain >= _MARGIN
        self._longest_rest = _FIRST_REST if pays else _LONGER * self._longest_rest

    def _forwards(self, budget: Budget, size: int) -> tuple[float, float]:
        """Return what catching up and a level cost in plain rounds; 0 while it is not known."""
        if not budget.cost.calibrated:
            return 0.0, 0.0
        plain = budget.cost.seconds_per_step * budget.cost(size)
        start = median(self._catch_ups or self._levels or [0.0])
        return start / plain, median(self._levels or self._catch_ups or [0.0]) / plain


def _expected_tokens(result: RoundResult) -> float:
    """Return the tokens that a round's verified nodes promised.

    Learnt rates say it with less chance than the tokens that came: with these, a few unlucky rounds
    would look like a drafter that does not pay.
    """
    rates = result.draft.rates
    if rates is None:
        return 1.0 + len(result.accepted)
    return sum(rates[node] for node in result.nodes)


def _best_gain(budget: Budget, size: int, rates: Sequence[float], spent: float) -> float:
    """Return the most tokens for the time of a plain round that verifying the best nodes gives."""
    cost = budget.cost
    plain = cost(size)
    tokens = accumulate(sorted(rates, reverse=True), initial=float(size))
    return max(
        emitted / (size * (cost(size + nodes) / plain + spent))
        for nodes, emitted in enumerate(tokens)
    )


def _depth(tree: GrowingTree) -> int:
    """Return the depth of the frontier."""
    node, depth = tree.frontier[0], 0
    while node > 0:
        node, depth = tree.parents[node], depth + 1
    return depth
