"""Every rule, tree and budget over a recorded trace, exactly, and what they would gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..verification import RULES, Trace
from ..verification.trace import Replay


@dataclass(frozen=True)
class Cost:
    """What a round costs, a plain step being 1.

    Attributes
    ----------
    rows : tuple of (int, float)
        What verifying so many rows costs, the root among them, ascending; between them it is
        interpolated, and beyond them it goes on as between the last two.
    draft : float
        What drafting a node costs.
    """

    rows: tuple[tuple[int, float], ...] = ((1, 1.0),)
    draft: float = 0.0

    def __call__(self, nodes: int) -> float:
        """Return the cost of drafting and verifying so many nodes."""
        xs, ys = zip(*self.rows, strict=True)
        rows = nodes + 1
        if rows > xs[-1] and len(xs) > 1:
            slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
            return float(ys[-1] + slope * (rows - xs[-1]) + self.draft * nodes)
        return float(np.interp(rows, xs, ys) + self.draft * nodes)

    @classmethod
    def parse(cls, text: str, draft: float = 0.0) -> Cost:
        """Read "1:1,2:1.05,4:1.2,8:1.5".

        Raises
        ------
        ValueError
            If it is not of that form, or rows do not ascend from 1, or costs are not positive.
        """
        try:
            rows = tuple(
                (int(n), float(cost)) for n, cost in (part.split(":") for part in text.split(","))
            )
        except ValueError:
            rows = ()
        numbers = [n for n, _ in rows]
        good = rows and numbers[0] == 1 and numbers == sorted(set(numbers))
        if not good or not all(0 < cost < float("inf") for _, cost in rows):
            raise ValueError(
                f"costs are rows:cost with commas between, rows ascending from 1, not {text!r}"
            )
        if not 0 <= draft < float("inf"):
            raise ValueError(f"the cost of drafting a node must be at least 0, got {draft}")
        return cls(rows, draft)


@dataclass(frozen=True)
class Replayed:
    """One rule under one set of limits.

    Attributes
    ----------
    rule, depth, width, nodes
        As in `Trace.replay`; None is no limit.
    replay : Replay or None
        What it gives; None where the rule would be biased for these drafts.
    speedup : float
        Over plain decoding at the given cost; NaN without a replay.
    """

    rule: str
    depth: int | None
    width: int | None
    nodes: int | None
    replay: Replay | None
    speedup: float


def replay_all(
    trace: Trace,
    cost: Cost,
    *,
    rules: Sequence[str] = (),
    depths: Sequence[int | None] = (None,),
    widths: Sequence[int | None] = (None,),
    nodes: Sequence[int | None] = (None,),
    drawn: str | None = None,
) -> list[Replayed]:
    """Run rules over a trace under every combination of limits.

    Parameters
    ----------
    trace
        What was recorded.
    cost
        What rounds cost.
    rules
        Names as in `kvctl.verify`; by default all.
    depths, widths, nodes, drawn
        As in `Trace.replay`.

    Raises
    ------
    ValueError
        If the trace is empty, a rule is unknown or a limit negative.
    """
    if len(trace) == 0:
        raise ValueError("the trace is empty")
    for rule in rules:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    found = []
    for rule in rules or RULES:
        for depth in depths:
            for width in widths:
                for count in nodes:
                    limits = {"depth": depth, "width": width, "nodes": count}
                    for name, limit in limits.items():
                        if limit is not None and limit < 0:
                            raise ValueError(f"{name} must be at least 0, got {limit}")
                    try:
                        one = trace.replay(rule, **limits, drawn=drawn)
                    except ValueError:  # biased for these drafts, or not for trees
                        found.append(Replayed(rule, depth, width, count, None, float("nan")))
                        continue
                    found.append(Replayed(rule, depth, width, count, one, one.speedup(cost)))
    return found
