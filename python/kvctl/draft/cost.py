"""What a round costs: learnt from the timings of this run, on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np

# Row counts that a calibration measures: each draft length with its root, doubling.
_CALIBRATION_ROWS = (1, 2, 3, 5, 9, 17, 33)
_CALIBRATION_ROUNDS = 2
_CALIBRATION_WEIGHT = 3  # timings that a calibrated value counts as

# The scale follows quickly, the shape slowly: a machine that slows down must not look like rows
# that have become dear.
_SCALE_WINDOW = 5
_SHAPE_WINDOW = 15

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
    only. Both are running medians: a timing that was disturbed says nothing.

    Between measured row counts the shape is interpolated, and it never falls with more rows. The
    prefill is such a measurement, of many rows, which every text makes anyway: with the first
    plain steps it says whether rows are cheap here. Beyond what was measured a row is
    taken to cost twice as much as the measured ones, or in proportion if that is less; before
    anything was, in proportion: nothing promises a gain then.

    Parameters
    ----------
    max_rows
        The largest round to predict.
    """

    def __init__(self, *, max_rows: int = 33) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be positive, got {max_rows}")
        self._samples: dict[int, deque[float]] = {}
        self._recent: deque[float] = deque(maxlen=_SCALE_WINDOW)
        self._first: set[int] = set()  # row counts timed once
        self._prefill: tuple[int, float] | None = None  # rows, seconds
        self._prefill_cost = 0.0
        self._steps_since_prefill = 0
        self._max_rows = max_rows
        self._shape: list[float] = []
        self._fit()

    @property
    def calibrated(self) -> bool:
        """Whether any round was timed yet."""
        return bool(self._recent)

    @property
    def timed_rounds(self) -> int:
        """How many timings of more than one row are known; the prefill is not among them."""
        return sum(map(len, self._samples.values()))

    @property
    def seconds_per_step(self) -> float:
        """The present estimate of a plain step in seconds; NaN before the first timing."""
        return median(self._recent) if self._recent else float("nan")

    @property
    def shape(self) -> list[float]:
        """``shape[rows]`` for rows 0 ... max_rows (index 0 costs nothing)."""
        return list(self._shape)

    def __call__(self, rows: int) -> float:
        """Return the cost of a round of ``rows`` rows in plain steps."""
        if rows <= self._max_rows:
            return self._shape[rows]
        return self._shape[-1] * rows / self._max_rows

    def observe_prefill(self, rows: int, seconds: float) -> None:
        """Learn from a forward of ``rows`` prompt tokens, which only the last had logits of."""
        if rows > 1:
            self._prefill = (rows, seconds)
            self._steps_since_prefill = 0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a round of ``rows`` rows that took ``seconds``."""
        known = self(rows)
        self._recent.append(seconds / known)
        self._steps_since_prefill += 1
        timed = 1 < rows <= self._max_rows
        if timed:
            self._add(rows, seconds / median(self._recent), known)
        # What the prefill cost in steps is settled by the first few steps behind it.
        if timed or (self._prefill and self._steps_since_prefill <= _SCALE_WINDOW):
            self._fit()

    def _add(self, rows: int, cost: float, known: float) -> None:
        """Add a timing of a row count, in plain steps, to the samples."""
        samples = self._samples.setdefault(rows, deque(maxlen=_SHAPE_WINDOW))
        if not samples:
            self._first.add(rows)
            cost = min(cost, _FIRST_RISE * known)
        elif rows in self._first:
            self._first.remove(rows)
            samples.clear()
        samples.append(cost)

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
        step = min(times.pop(1))
        self._recent.append(step)
        for rows, seconds in times.items():
            self._samples[rows] = deque(
                [min(seconds) / step] * _CALIBRATION_WEIGHT, maxlen=_SHAPE_WINDOW
            )
        self._fit()

    def _fit(self) -> None:
        sizes = sorted(self._samples)
        values = _nondecreasing(
            [median(self._samples[rows]) for rows in sizes],
            [len(self._samples[rows]) for rows in sizes],
        )
        rows, costs = [1, *sizes], [1.0, *(max(value, 1.0) for value in values)]
        if self._prefill is not None and self._recent:
            many, seconds = self._prefill
            if self._steps_since_prefill <= _SCALE_WINDOW:
                steps = seconds / median(self._recent)
                self._prefill_cost = min(1.0 + _PREFILL_PESSIMISM * (steps - 1.0), many)
            if many > rows[-1]:
                rows.append(many)
                costs.append(max(self._prefill_cost, costs[-1]))
        counts = np.arange(self._max_rows + 1)
        shape = np.interp(counts, rows, costs)
        beyond = counts > rows[-1]
        shape[beyond] = costs[-1] * counts[beyond] / rows[-1]
        if len(rows) > 1:
            slope = max((costs[-1] - 1.0) / (rows[-1] - 1), _LEAST_SLOPE)
            dearer = costs[-1] + _DEARER_BEYOND * slope * (counts[beyond] - rows[-1])
            shape[beyond] = np.minimum(shape[beyond], dearer)
        shape[0] = 0.0
        self._shape = shape.tolist()


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
