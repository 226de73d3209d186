"""What rounds cost on each runner, kept for as long as the runner lives."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..draft import RoundCost

if TYPE_CHECKING:
    from .protocol import Runner

# Larger rounds are taken to cost in proportion.
_MAX_ROWS = 256

_costs: WeakKeyDictionary[Runner, RoundCost] = WeakKeyDictionary()


def cost_of(runner: Runner) -> RoundCost:
    """Return what is known of the cost of a runner's rounds; every generation adds to it."""
    cost = _costs.get(runner)
    if cost is None:
        _costs[runner] = cost = RoundCost(max_rows=_MAX_ROWS)
    return cost
