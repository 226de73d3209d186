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


class RoundCost:
    """The cost of a round that forwards a number of rows, in units of a plain step (one row).

    A round's time is modelled as ``scale * shape[rows]``: what slows the whole machine down, or a
    context that grows, moves the scale and leaves the decision alone, which depends on the shape
    only. Both are running medians: a timing that was disturbed says nothing.

    Between measured row counts the shape is interpolated, and it never falls with more rows.
    Beyond them it is proportional to the rows: nothing promises a gain before it was measured.

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
        self._max_rows = max_rows
        self._shape: list[float] = []
        self._fit()

    @property
    def calibrated(self) -> bool:
        """Whether any round was timed yet."""
        return bool(self._recent)

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

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a round of ``rows`` rows that took ``seconds``."""
        self._recent.append(seconds / self(rows))
        if rows == 1 or rows > self._max_rows:
            return
        samples = self._samples.setdefault(rows, deque(maxlen=_SHAPE_WINDOW))
        samples.append(seconds / median(self._recent))
        self._fit()

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
        counts = np.arange(self._max_rows + 1)
        shape = np.interp(counts, rows, costs)
        beyond = counts > rows[-1]
        shape[beyond] = costs[-1] * counts[beyond] / rows[-1]
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
