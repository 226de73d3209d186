"""Acceptance by depth as a curve with error bars; several may share their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .axes import axes_or_new

# Curves differ in black and white too: by marker and by line.
_MARKERS = "osD^vXP*"
_LINES = ("-", "--", ":", "-.")


def draw_rates(
    rates: npt.NDArray[np.float64],
    reached: npt.NDArray[np.int64],
    *,
    figure: str,
    label: str | None,
    ax: Any,
) -> Any:
    """Draw one curve; see `AcceptanceStats.plot`. `figure` is what its title or legend says."""
    ax = axes_or_new(ax, "AcceptanceStats.plot")
    number = len(ax.containers)
    earlier = [container.get_label() for container in ax.containers]
    name = figure if label is None else f"{label}: {figure}"
    depths = np.arange(1, len(rates) + 1)
    error = 1.96 * np.sqrt(rates * (1 - rates) / np.maximum(reached, 1))
    ax.errorbar(
        depths,
        rates,
        np.nan_to_num(error),
        label=name,
        marker=_MARKERS[number % len(_MARKERS)],
        linestyle=_LINES[number % len(_LINES)],
        markerfacecolor=None if number % 2 == 0 else "white",
        capsize=3,
    )
    ax.set(xlabel="depth", ylabel="accepted, if reached", ylim=(0, 1.02))
    ax.set_xlim(0.5, max(len(rates) + 0.5, ax.get_xlim()[1] if earlier else 1.5))
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if label is None and not earlier:
        ax.set_title(name)
        return ax
    if ax.get_title() in earlier:  # the title of the first curve; the legend has it from now on
        ax.set_title("")
    ax.legend()
    return ax
