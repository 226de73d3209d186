"""What a round costs: learnt from the timings of real rounds, on this machine."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from ..drawing.cost_plot import draw_cost

# Row counts that a calibration measures: each draft length with its root, doubling.
_CALIBRATION_ROWS = (1, 2, 3, 5, 9, 17, 33)
_CALIBRATION_ROUNDS = 2
_CALIBRATION_WEIGHT = 3  # timings that a calibrated value counts as

# The scale follows quickly, the shape slowly: a machine that slows down must not look like rows
# that have become dear.
_SCALE_WINDOW = 5
_SHAPE_WINDOW = 15
# In the list of recent rounds: one that says nothing of others, being a calibration's, or of a row
# count whose own cost is a guess.
_NOTHING = 0

# A prefill computes no logits but the last, so a round of as many rows is dearer than it.
_PREFILL_PESSIMISM = 1.5
# How much dearer a row is taken to be beyond the measured ones, and what one costs at least.
_DEARER_BEYOND = 2.0
_LEAST_SLOPE = 0.03
# The first timing of a row count has what is made once for it; it raises the estimate no further.
_FIRST_RISE = 1.25


class RoundCost:
    """The cost of a round that forwards a number of rows, in units of a plain step (one row).

    A round's time is modelled as ``scale * shape[rows]``: what slows the whole machine down, or a
    context that grows, moves the scale and leaves the decision alone, which depends on the shape
    only. Both are running medians: a timing that was disturbed says nothing. What a row count costs
    is seen beside recent rounds of other row counts; of the first that was ever timed it is the
    unit.

    Between measured row counts the shape is interpolated, and it never falls with more rows. The
    prefill is such a measurement, of many rows, which every text makes anyway: with the first
    plain steps it says whether rows are cheap here. Beyond what was measured a row is
    taken to cost twice as much as the measured ones, or in proportion if that is less; before
    anything was, in proportion: nothing promises a gain then.

    Parameters
    ----------
    max_rows
        The largest round to predict; larger ones are taken to cost in proportion.
    """

    def __init__(self, *, max_rows: int = 33) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be positive, got {max_rows}")
        # In units in which one row costs about 1: a batch may never have timed a single row.
        self._samples: dict[int, deque[float]] = {}
        self._recent: deque[tuple[int, float]] = deque(maxlen=_SHAPE_WINDOW)  # rows, seconds / cost
        self._first: set[int] = set()  # row counts timed once
        self._unit: int | None = None  # the row count whose cost is fixed
        self._prefill: tuple[int, float] | None = None  # rows, seconds
        self._prefill_cost = 0.0
        self._steps_since_prefill = 0
        self._max_rows = max_rows
        self._fit()

    @property
    def calibrated(self) -> bool:
        """Whether any round was timed yet."""
        return bool(self._recent)

    @property
    def timed_rounds(self) -> int:
        """How many timings of more than one row are known; the prefill is not among them."""
        return sum(
            len(self._samples[rows]) for rows in self._samples if rows not in (1, self._unit)
        )

    @property
    def seconds_per_step(self) -> float:
        """The present estimate of a plain step in seconds; NaN before the first timing."""
        return self._scale() * self._units(1) if self._recent else float("nan")

    @property
    def shape(self) -> list[float]:
        """``shape[rows]`` for rows 0 ... max_rows (index 0 costs nothing)."""
        return [0.0, *(self(rows) for rows in range(1, self._max_rows + 1))]

    @property
    def points(self) -> list[tuple[int, float]]:
        """The row counts that were timed more than once, and what each costs in plain steps.

        These are what another run may `recall`.
        """
        timed = sorted(rows for rows in self._samples if rows not in self._first and rows > 1)
        if 1 not in self._samples:
            return []  # in plain steps nothing is known
        return [(rows, self(rows)) for rows in timed]

    def plot(self, *, max_rows: int | None = None, label: str | None = None, ax: Any = None) -> Any:
        """Draw the cost of a round over its rows; needs matplotlib (``pip install kvctl[plot]``).

        The line is what is believed, the dots are row counts that were timed; proportional cost,
        at which verifying gains nothing, is dotted.

        Parameters
        ----------
        max_rows
            The largest round to draw; by default a little beyond the timed ones.
        label
            A legend entry, where several curves share their axes.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `max_rows` is less than 1.
        """
        points = [(1, 1.0), *self.points] if self.calibrated else []
        if max_rows is None:
            max_rows = max(8, *(rows + 4 for rows, _ in points)) if points else 8
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        curve = [self(rows) for rows in range(1, max_rows + 1)]
        return draw_cost(curve, points, label=label, ax=ax)

    def __call__(self, rows: int) -> float:
        """Return the cost of a round of ``rows`` rows in plain steps."""
        return self._units(rows) / self._units(1)

    def recall(self, points: Sequence[tuple[int, float]]) -> None:
        """Believe what another run learnt, until this one's timings say otherwise.

        Parameters
        ----------
        points
            Pairs of a row count and its cost in plain steps, as `points` returns them; costs of
            less than a step or not finite, and row counts that are not predicted, are left out.
        """
        for rows, cost in points:
            if self._unit is None:
                self._unit, self._samples[1] = 1, deque([1.0])
            if 1 < rows <= self._max_rows and 1.0 <= cost < math.inf and rows not in self._samples:
                believed = [cost * self._units(1)] * _CALIBRATION_WEIGHT
                self._samples[rows] = deque(believed, maxlen=_SHAPE_WINDOW)
        self._fit()

    def observe_prefill(self, rows: int, seconds: float) -> None:
        """Learn from a forward of ``rows`` prompt tokens, which only the last had logits of."""
        if rows > 1:
            self._prefill = (rows, seconds)
            self._steps_since_prefill = 0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a round of ``rows`` rows that took ``seconds``."""
        known, kind = self._units(rows), _bucket(rows)
        if self._unit is None:
            self._unit = kind
        if kind not in self._samples and not self._comparable():
            self._samples[kind] = deque([known], maxlen=_SHAPE_WINDOW)
        is_known = kind in self._samples and kind not in self._first
        self._recent.append((kind if is_known else _NOTHING, seconds / known))
        self._steps_since_prefill += 1
        timed = rows <= self._max_rows and kind != self._unit and self._add(kind, seconds, known)
        # What the prefill cost in steps is settled by the first few steps behind it.
        if timed or (self._prefill and self._steps_since_prefill <= _SCALE_WINDOW):
            self._fit()

    def _comparable(self) -> bool:
        """Return whether a recent round had a row count that others can be compared with.

        Where none had, as in a batch on a runner that is known from single texts, a row count is
        believed to cost what lies between its neighbours, and others are compared with it.
        """
        return any(kind != _NOTHING for kind, _ in self._recent)

    def _scale(self) -> float:
        """Return the present seconds of a unit of cost."""
        known = [value for kind, value in self._recent if kind != _NOTHING]
        return median((known or [value for _, value in self._recent])[-_SCALE_WINDOW:])

    def _add(self, rows: int, seconds: float, known: float) -> bool:
        """Add a timing to the samples of a row count, if it can be compared; return whether."""
        others = [value for kind, value in self._recent if kind not in (rows, _NOTHING)]
        if not others:
            return False
        cost = seconds / median(others[-_SCALE_WINDOW:])
        samples = self._samples.setdefault(rows, deque(maxlen=_SHAPE_WINDOW))
        if not samples:
            self._first.add(rows)
            cost = min(cost, _FIRST_RISE * known)
        elif rows in self._first:
            self._first.remove(rows)
            samples.clear()
        samples.append(cost)
        return True

    def calibrate(self, measure: Callable[[int], float]) -> None:
        """Seed the model with a few throwaway rounds of growing size, interleaved.

        Parameters
        ----------
        measure
            Runs a round of that many rows, undoes it, and returns its seconds.
        """
        sizes = [rows for rows in _CALIBRATION_ROWS if rows <= self._max_rows]
        for rows in sizes:
            measure(rows)  # warms up what is made once per row count
        times: dict[int, list[float]] = {rows: [] for rows in sizes}
        for _ in range(_CALIBRATION_ROUNDS):
            for rows in sizes:
                times[rows].append(measure(rows))
        # The least of a few: a disturbance only makes a timing longer.
        step = min(times[1])
        self._recent.append((_NOTHING, step))
        self._unit = 1
        for rows, seconds in times.items():
            self._samples[rows] = deque(
                [min(seconds) / step] * _CALIBRATION_WEIGHT, maxlen=_SHAPE_WINDOW
            )
        self._fit()

    def _fit(self) -> None:
        """Place the points between which costs are interpolated."""
        sizes = sorted(self._samples)
        costs = _nondecreasing(
            [median(self._samples[rows]) for rows in sizes],
            [len(self._samples[rows]) for rows in sizes],
        )
        if sizes[:1] != [1]:
            sizes, costs = [1, *sizes], [1.0, *(max(cost, 1.0) for cost in costs)]
        if self._prefill is not None and self._recent:
            many, seconds = self._prefill
            if self._steps_since_prefill <= _SCALE_WINDOW:
                steps = seconds / (self._scale() * costs[0])
                self._prefill_cost = min(1.0 + _PREFILL_PESSIMISM * (steps - 1.0), many)
            if many > sizes[-1]:
                sizes.append(many)
                costs.append(max(self._prefill_cost * costs[0], costs[-1]))
        self._rows, self._costs = sizes, costs
        self._known: dict[int, float] = {}

    def _units(self, rows: int) -> float:
        """Return the cost of a round in the units of the samples."""
        known = self._known.get(rows)
        if known is None:
            self._known[rows] = known = self._between(rows)
        return known

    def _between(self, rows: int) -> float:
        """Return the cost of a round between the points, or beyond the last one."""
        if rows > self._max_rows:
            return self._between(self._max_rows) * rows / self._max_rows
        sizes, costs = self._rows, self._costs
        last, most = sizes[-1], costs[-1]
        if rows > last:
            cost = most * rows / last
            if len(sizes) > 1:
                slope = max((most - costs[0]) / (last - 1), _LEAST_SLOPE * costs[0])
                cost = min(cost, most + _DEARER_BEYOND * slope * (rows - last))
            return cost
        at = bisect_left(sizes, rows)
        if sizes[at] == rows:
            return costs[at]
        share = (rows - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return costs[at - 1] + share * (costs[at] - costs[at - 1])


def _bucket(rows: int) -> int:
    """Return the row count that stands for this one: beyond 16, four for each doubling."""
    step = 1 if rows <= 16 else 1 << (rows.bit_length() - 3)
    return (rows + step // 2) // step * step


def _nondecreasing(values: list[float], weights: list[int]) -> list[float]:
    """Return the nondecreasing values nearest to these: neighbours that disagree share a mean."""
    blocks: list[tuple[float, int, int]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while blocks and blocks[-1][0] > value:
            mean, more, others = blocks.pop()
            value = (value * weight + mean * more) / (weight + more)
            weight, count = weight + more, count + others
        blocks.append((value, weight, count))
    return [mean for mean, _, count in blocks for _ in range(count)]
