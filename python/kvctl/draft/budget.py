"""How much to draft in a round: the nodes that promise the most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence

from .cost import RoundCost
from .request import Request

# Where nothing promises a gain because no round was timed yet, so many rounds try a single node
# that is as likely right as this.
_TRIALS = 2
_TRIAL_RATE = 0.5


class Budget:
    """Chooses how many nodes each text of a round verifies; none of any means a plain step.

    A round over B texts with n drafted nodes emits B tokens plus, on average, the sum of the nodes'
    path probabilities, and costs ``cost(B + n)``. The choice maximises the ratio, over the nodes of
    all texts in order of probability: a second sibling competes with a deeper token, and one text
    with another, on equal terms.

    Estimates can be wrong, so a bet must also be affordable: what a text would lose if all its
    drafts were rejected may not exceed what its earlier rounds gained, plus a small credit that
    grows with each round. However misleading the text, generation therefore never takes longer than
    plain decoding by more than that credit. Only before anything of more than one row was timed,
    and where the prefill promised nothing, up to two rounds try one likely node beyond it.

    Parameters
    ----------
    cost
        What rounds cost.
    margin
        The least relative gain that is worth a bet.
    credit
        Plain steps that a text may lose before anything was gained.
    allowance
        Plain steps that it may lose in addition for each round.
    """

    def __init__(
        self,
        cost: RoundCost,
        *,
        margin: float = 0.05,
        credit: float = 0.3,
        allowance: float = 0.01,
    ) -> None:
        self.cost = cost
        self._margin = margin
        self._credit = credit
        self._allowance = allowance
        self._purses: dict[int, float] = {}

    def purse(self, id: int) -> float:
        """Return what a text may lose at present, in plain steps."""
        return self._purses.get(id, self._credit)

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
        size = len(requests)
        limits = [request.limit for request in requests]
        ordered = sorted(
            ((-rate, text) for text, nodes in enumerate(rates) for rate in nodes if rate > 0),
        )
        plain = self.cost(size)
        taken, best, total = [0] * size, [0] * size, 0
        purses = [self.purse(request.id) for request in requests]
        emitted, best_gain = float(size), 1.0 + self._margin
        for rate, text in ordered:
            count = taken[text] + 1
            if count > limits[text]:
                continue
            cost = self.cost(size + total + 1) / plain
            if size * (cost - 1.0) * count > purses[text] * (total + 1):
                limits[text] = 0  # not affordable, and so would more
                continue
            taken[text], total, emitted = count, total + 1, emitted - rate
            if emitted > best_gain * size * cost:
                best, best_gain = taken.copy(), emitted / (size * cost)
        if ordered and not any(best) and self._tries(-ordered[0][0]):
            text = ordered[0][1]
            best[text] = min(1, requests[text].limit)
        return best

    def _tries(self, rate: float) -> bool:
        """Return whether to verify one node only to learn what that costs."""
        known = not self.cost.calibrated or self.cost.timed_rounds >= _TRIALS
        return not known and rate >= _TRIAL_RATE

    def observe(
        self, ids: Sequence[int], nodes: Sequence[int], emitted: Sequence[int], seconds: float
    ) -> None:
        """Learn from a round: the texts, their drafted nodes and emitted tokens, and its time."""
        size, drafted = len(ids), sum(nodes)
        self.cost.observe(size + drafted, seconds)
        lost = size * (self.cost(size + drafted) / self.cost(size) - 1.0) if drafted else 0.0
        for id, count, tokens in zip(ids, nodes, emitted, strict=True):
            purse = self.purse(id) + self._allowance
            if count:
                purse += tokens - 1 - lost * count / drafted
            self._purses[id] = purse

    def finish(self, id: int) -> None:
        """Forget a text."""
        self._purses.pop(id, None)
