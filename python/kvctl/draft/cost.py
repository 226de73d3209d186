"""What a round costs: learnt from the timings of this run, on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np

# Row counts that a calibration measures: each draft length with its root, doubling.
_CALIBRATION_ROWS = (1, 2, 3, 5, 9, 17, 33)
_CALIBRATION_ROUNDS = 2


class RoundCost:
    """The cost of a round that forwards a number of rows, in units of a plain step (one row).

    A round's time is modelled as ``scale * shape[rows]``: what slows the whole machine down, or a
    context that grows, moves the scale and leaves the decision alone, which depends on the shape
    only. Both are running medians, because timings have outliers and outliers have no meaning.

    Between measured row counts the shape is interpolated; it never falls with more rows. Beyond
    them it is proportional to the rows, so that nothing promises a gain before it was measured.

    Parameters
    ----------
    max_rows
        The largest round that will be asked for.
    window
        Timings that a median looks back at.
    """

    def __init__(self, *, max_rows: int = 33, window: int = 9) -> None:
        if max_rows < 1 or window < 1:
            raise ValueError(f"max_rows and window must be positive, got {max_rows}, {window}")
        self._samples: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {1: 1.0}
        self._recent: deque[float] = deque(maxlen=window)
        self._window = window
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
        samples = self._samples.setdefault(rows, deque(maxlen=self._window))
        samples.append(seconds / median(self._recent))
        self._medians[rows] = median(samples)
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
        # The least of a few: whatever disturbs a timing makes it longer.
        step = min(times.pop(1))
        self._recent.append(step)
        for rows, seconds in times.items():
            self._samples[rows] = deque([min(seconds) / step], maxlen=self._window)
            self._medians[rows] = self._samples[rows][0]
        self._fit()

    def _fit(self) -> None:
        rows = np.array(sorted(self._medians), dtype=np.float64)
        values = np.array([self._medians[int(n)] for n in rows])
        # More rows never cost less: an outlier above is lowered to what more rows were seen to cost.
        values = np.maximum(np.minimum.accumulate(values[::-1])[::-1], 1.0)
        counts = np.arange(self._max_rows + 1, dtype=np.float64)
        shape = np.interp(counts, rows, values)
        beyond = counts > rows[-1]
        shape[beyond] = values[-1] * counts[beyond] / rows[-1]
        shape[0] = 0.0
        self._shape = shape.tolist()
