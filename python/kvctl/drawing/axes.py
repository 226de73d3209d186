"""Where a plot goes: the caller's axes, or a figure of its own."""

from __future__ import annotations

from itertools import count
from typing import Any


def axes_or_new(ax: Any, what: str, *, size: tuple[float, float] | None = None) -> Any:
    """Return the caller's axes, or those of a new figure of pyplot.

    Parameters
    ----------
    ax
        The caller's matplotlib.axes.Axes, or None.
    what
        Who draws, for the error message.
    size
        Inches of a new figure, width and height.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{what} needs matplotlib: pip install kvctl[plot]") from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def integer_ticks(n: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced round numbers among 0 ... n - 1, from 0 on."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    step = next(step for step in steps if (n - 1) // step < max(most, 1))
    return list(range(0, n, step))
