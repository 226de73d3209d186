"""How much to draft in a round: the nodes that promise the most tokens per second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

from .cost import RoundCost
from .request import Request
from .savings import Savings

# Where nothing promises a gain because no round was timed yet, so many rounds try a single node
# that is as likely right as this.
_TRIALS = 2
_TRIAL_RATE = 0.5
# How often the counts are chosen anew because a text cannot pay its part.
_PASSES = 3


class Budget:
    """Chooses how many nodes each text of a round verifies; none of any means a plain step.

    A round over B texts with n drafted nodes emits B tokens plus, on average, the sum of the nodes'
    path probabilities, and costs ``cost(B + n)``. The choice maximises the ratio, over the nodes of
    all texts in order of probability: a second sibling competes with a deeper token, and one text
    with another, on equal terms.

    Estimates can be wrong, so a bet must also be affordable: what a text would lose if all its
    drafts were rejected may not exceed what its earlier rounds gained, plus a small credit that
    grows with each round, plus what texts before it saved. However misleading the texts, generation
    therefore never takes longer than plain decoding by more than their credits. Only before
    anything of more than one row was timed, and where the prefill promised nothing, up to two
    rounds try one likely node beyond it.

    Parameters
    ----------
    cost
        What rounds cost.
    margin
        The least relative gain that is worth a bet.
    credit
        Plain steps that a text may lose before anything was gained; from two texts on it grows with
        the root of the batch, up to one step, since a text's part of a plain round is smaller
        there, and a row is a larger part of that.
    allowance
        Plain steps that it may lose in addition for each round.
    savings
        What earlier texts of the drafter gained; none by default.

    Attributes
    ----------
    promised : float
        What the drafts of drafters that were asked before promise (`promise`); 1 where there are
        none. A drafter that takes time need not draft where it promises less.
    """

    def __init__(
        self,
        cost: RoundCost,
        *,
        margin: float = 0.05,
        credit: float = 0.3,
        allowance: float = 0.01,
        savings: Savings | None = None,
    ) -> None:
        self.cost = cost
        self.promised = 1.0
        self._margin = margin
        self._credit = credit
        self._allowance = allowance
        self._savings = savings or Savings()
        self._purses: dict[int, float] = {}
        self._own: dict[int, float] = {}  # what each text was given of its own

    def purse(self, id: int) -> float:
        """Return what a text may lose at present, in plain steps."""
        return self._purses.get(id, self._credit)

    def beside(self, promised: float) -> Budget:
        """Return this budget for a drafter that is asked after others.

        Parameters
        ----------
        promised
            What `promise` said of the others' drafts.
        """
        other = copy(self)
        other.promised = max(promised, 1.0)
        return other

    def promise(self, requests: Sequence[Request], rates: Sequence[Sequence[float]]) -> float:
        """Return the tokens that drafts promise for the time of a plain round, in plain rounds.

        It is 1 where none of them is worth verifying; for the parameters see `choose`.
        """
        return self._choice(requests, rates)[1]

    def choose(self, requests: Sequence[Request], rates: Sequence[Sequence[float]]) -> list[int]:
        """Return how many nodes each text should verify, the root not counted.

        Parameters
        ----------
        requests
            All texts of the round.
        rates
            For each, the probability of its nodes in any order, their paths included; the root is
            not among them. Empty where nothing is drafted.
        """
        best, _ = self._choice(requests, rates)
        if not any(best):
            likely = ((-rate, text) for text, nodes in enumerate(rates) for rate in nodes)
            rate, text = min(likely, default=(0.0, 0))
            if rate < 0 and self._tries(-rate):
                best[text] = min(1, requests[text].limit)
        return best

    def affords(self, requests: Sequence[Request]) -> bool:
        """Return whether any text could pay for verifying a node.

        Where none can, a drafter that takes time need not draft.
        """
        size, most = len(requests), sum(request.limit for request in requests)
        if most == 0:
            return False
        self._begin([request.id for request in requests])
        purses = [max(self._purses[request.id], 0.0) for request in requests]
        plain = self.cost(size)
        # The more nodes share a step of the cost, the less of it is one node's part; but somebody
        # must pay for each of them.
        for total in (1 << i for i in range(most.bit_length())):
            part = _part(size, total, self.cost(size + total) / plain)
            counts = (
                request.limit if part == 0.0 else min(request.limit, int(purse / part))
                for request, purse in zip(requests, purses, strict=True)
            )
            if sum(counts) >= total:
                return True
        return self._tries(1.0)

    def _choice(
        self, requests: Sequence[Request], rates: Sequence[Sequence[float]]
    ) -> tuple[list[int], float]:
        """Return how many nodes of each text to verify, and what they promise."""
        size = len(requests)
        ordered = sorted(
            (-rate, text) for text, nodes in enumerate(rates) for rate in nodes if rate > 0
        )
        best = [0] * size
        if not ordered:
            return best, 1.0
        plain = self.cost(size)
        cost = self.cost
        costs = [cost(size + total) / plain for total in range(len(ordered) + 1)]
        parts = [_part(size, total, cost) for total, cost in enumerate(costs)]
        self._begin([request.id for request in requests])
        purses = [max(self._purses[request.id], 0.0) for request in requests]
        caps, best_gain = [request.limit for request in requests], 1.0 + self._margin
        for _ in range(_PASSES):
            wish, gain, bet = self._take(ordered, caps, costs, parts, purses)
            if gain > best_gain:
                best, best_gain = bet, gain
            total = sum(wish)
            if total == 0 or wish == bet:
                break
            # Not all can pay their part of that: those draft less.
            caps = [
                min(cap, int(purse / parts[total])) for cap, purse in zip(caps, purses, strict=True)
            ]
        return best, best_gain if any(best) else 1.0

    def _take(
        self,
        ordered: Sequence[tuple[float, int]],
        caps: Sequence[int],
        costs: Sequence[float],
        parts: Sequence[float],
        purses: Sequence[float],
    ) -> tuple[list[int], float, list[int]]:
        """Take nodes in order, no more of a text than its cap.

        Returns
        -------
        tuple
            How many nodes of each text promise most; and the gain of the best that every text can
            pay its part of, and those counts.
        """
        size = len(caps)
        taken, total, dearest = [0] * size, 0, 0.0
        wish, bet, emitted = [0] * size, [0] * size, float(size)
        wished = gain = 1.0 + self._margin
        for rate, text in ordered:
            count = taken[text] + 1
            if count > caps[text]:
                continue
            taken[text], total, emitted = count, total + 1, emitted - rate
            dearest = max(dearest, count / purses[text]) if purses[text] else math.inf
            promised = emitted / (size * costs[total])
            if promised > wished:
                wish, wished = taken.copy(), promised
            if promised > gain and (parts[total] == 0.0 or dearest * parts[total] <= 1.0):
                bet, gain = taken.copy(), promised
        return wish, gain, bet

    def _tries(self, rate: float) -> bool:
        """Return whether to verify one node only to learn what that costs."""
        known = not self.cost.calibrated or self.cost.timed_rounds >= _TRIALS
        return not known and rate >= _TRIAL_RATE

    def observe(
        self, ids: Sequence[int], nodes: Sequence[int], emitted: Sequence[int], seconds: float
    ) -> None:
        """Learn from a round: the texts, their drafted nodes and emitted tokens, and its time."""
        self._begin(ids)
        size, drafted = len(ids), sum(nodes)
        self.cost.observe(size + drafted, seconds)
        lost = size * (self.cost(size + drafted) / self.cost(size) - 1.0) if drafted else 0.0
        for id, count, tokens in zip(ids, nodes, emitted, strict=True):
            purse = self._purses[id] + self._allowance
            if count:
                purse += tokens - 1 - lost * count / drafted
            self._purses[id] = purse

    def _begin(self, ids: Sequence[int]) -> None:
        """Give texts that are new their credit."""
        new = [id for id in ids if id not in self._purses]
        if new:
            grown = self._credit * max(1.0, math.sqrt(len(ids) / 2))
            own = max(self._credit, min(grown, 1.0))
            self._own.update(dict.fromkeys(new, own))
            self._purses.update(dict.fromkeys(new, own + self._savings.take(len(new))))

    def finish(self, id: int) -> None:
        """Forget a text, and save what it gained."""
        if id in self._purses:
            self._savings.give_back(self._purses.pop(id) - self._own.pop(id))


def _part(size: int, total: int, cost: float) -> float:
    """Return each node's part of what `total` nodes cost beyond a plain round, in tokens."""
    return size * (cost - 1.0) / max(total, 1)
