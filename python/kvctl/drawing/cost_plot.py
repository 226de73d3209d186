"""What a round costs by its rows, as a curve; several may share their axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .axes import axes_or_new

_LINES = ("-", "--", "-.")
_PROPORTIONAL = "in proportion"


def draw_cost(
    curve: Sequence[float], points: Sequence[tuple[int, float]], *, label: str | None, ax: Any
) -> Any:
    """Draw the costs of 1, 2, ... rows and the timed ones; see `RoundCost.plot`."""
    ax = axes_or_new(ax, "RoundCost.plot")
    drawn = [line for line in ax.lines if line.get_gid() == "cost"]
    rows = range(1, len(curve) + 1)
    style = _LINES[len(drawn) % len(_LINES)]
    [line] = ax.plot(rows, curve, linestyle=style, label=label, gid="cost")
    if points:
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, linestyle="", marker="o", color=line.get_color())
    highest = max([*curve, *(one.get_ydata().max() for one in drawn)])
    if not drawn:
        end = max(2, len(curve))
        ax.plot([1, end], [1, end], color="0.5", linestyle=":", label=_PROPORTIONAL)
    ax.set(xlabel="rows of a round", ylabel="cost in plain steps", ylim=(0, 1.1 * highest))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax
