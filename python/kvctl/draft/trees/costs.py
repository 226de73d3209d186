"""What rounds of each size cost, as an array that the builders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..._ffi.integers import one_int32

#: What a round of so many rows costs, in any unit: `kvctl.draft.RoundCost` is such a function.
Cost = Callable[[int], float]


def check_budget(budget: int) -> int:
    """Return the number of nodes beside the root; ``ValueError`` if it is negative."""
    budget = one_int32(budget, "budget")
    if budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    return budget


def costs_of(cost: Cost | None, budget: int) -> npt.NDArray[np.float64] | None:
    """Return (budget + 1,) what a round of 1, 2, ... rows costs; None without a cost.

    Raises
    ------
    ValueError
        If a cost is not a positive number, or falls where rows are added.
    """
    if cost is None:
        return None
    costs = np.array(list(map(cost, range(1, budget + 2))), np.float64)
    if not (costs[0] > 0 and (costs[1:] >= costs[:-1]).all() and costs[-1] < np.inf):
        _refuse(costs)
    return costs


def gain_of(expected: float, rows: int, costs: npt.NDArray[np.float64] | None) -> float:
    """Return the tokens per second of such rounds over those of plain decoding."""
    return expected if costs is None else float(expected * costs[0] / costs[rows - 1])


def _refuse(costs: npt.NDArray[np.float64]) -> NoReturn:
    bad = np.flatnonzero(~(np.isfinite(costs) & (costs > 0)))
    if bad.size:
        raise ValueError(
            f"the cost of a round must be a positive number, got {costs[bad[0]]} "
            f"for {bad[0] + 1} rows"
        )
    rows = int(np.flatnonzero(costs[1:] < costs[:-1])[0]) + 1
    raise ValueError(
        f"the cost of a round must not fall with more rows, got {costs[rows - 1]} for {rows} "
        f"and {costs[rows]} for {rows + 1}"
    )
