"""How much to draft: the number of nodes that promises the most tokens per second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .cost import RoundCost

# Where nothing promises a gain because no round was timed yet, so many rounds try a single node
# that is as likely right as this.
_TRIALS = 2
_TRIAL_RATE = 0.5


class AdaptiveLength:
    """Chooses each round how many drafted nodes to verify; none means a plain step.

    A round of n drafted nodes emits one token plus, on average, the sum of the nodes' path
    probabilities, and costs `cost(1 + n)` plain steps. The choice maximises the ratio, over the
    nodes in order of probability: a second sibling competes with a deeper token on equal terms.

    Estimates can be wrong, so a bet must also be affordable: what a round would lose if all its
    drafts were rejected may not exceed what earlier rounds gained, plus a small credit that grows
    with each round. However misleading the text, generation therefore never takes longer than
    plain decoding by more than that credit. Only before anything of more than one row was timed,
    and where the prefill promised nothing, up to two rounds try one likely node beyond it.

    Parameters
    ----------
    max_nodes
        The most nodes to draft.
    margin
        The least relative gain that is worth a bet.
    credit
        Plain steps that may be lost before anything was gained.
    allowance
        Plain steps that may be lost in addition for each round.
    """

    def __init__(
        self,
        *,
        max_nodes: int = 16,
        margin: float = 0.05,
        credit: float = 0.3,
        allowance: float = 0.01,
    ) -> None:
        if max_nodes < 0:
            raise ValueError(f"max_nodes must not be negative, got {max_nodes}")
        self.max_nodes = max_nodes
        self.cost = RoundCost(max_rows=max_nodes + 1)
        self._margin = margin
        self._credit = credit
        self._allowance = allowance
        self._purse = credit

    @property
    def purse(self) -> float:
        """What may be lost at present, in plain steps."""
        return self._purse

    def start(self, measure: Callable[[int], float] | None = None) -> None:
        """Begin a text: an empty purse.

        Parameters
        ----------
        measure
            Measures costs before the first text ever, in throwaway rounds: see
            `RoundCost.calibrate`. Without it costs are learnt from the rounds of the text, and
            from its prefill if `RoundCost.observe_prefill` was told of it.
        """
        self._purse = self._credit
        if measure is not None and self.max_nodes > 0 and not self.cost.calibrated:
            self.cost.calibrate(measure)

    def choose(self, path_rates: Sequence[float], limit: int) -> int:
        """Return how many nodes to verify.

        Parameters
        ----------
        path_rates
            The probability of each drafted node, its path included; the root is not among them.
        limit
            The most nodes allowed this round.
        """
        best, best_gain, emitted = 0, 1.0 + self._margin, 1.0
        ordered = sorted(path_rates, reverse=True)
        for count, rate in enumerate(ordered[: max(0, min(limit, self.max_nodes))], start=1):
            emitted += rate
            cost = self.cost(1 + count)
            if cost - 1.0 > self._purse:
                break  # and so would more
            if emitted / cost > best_gain:
                best, best_gain = count, emitted / cost
        if best == 0 and self._tries(ordered[:limit] if limit > 0 else []):
            return 1
        return best

    def _tries(self, ordered: Sequence[float]) -> bool:
        """Return whether to verify one node only to learn what that costs."""
        if not self.cost.calibrated or self.cost.timed_rounds >= _TRIALS or self.max_nodes == 0:
            return False
        return bool(ordered) and ordered[0] >= _TRIAL_RATE

    def observe(self, rows: int, emitted: int, seconds: float) -> None:
        """Learn from a round of ``rows`` rows that emitted tokens and took seconds."""
        self.cost.observe(rows, seconds)
        self._purse += self._allowance
        if rows > 1:
            self._purse += emitted - self.cost(rows)
