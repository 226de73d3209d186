"""A page table as a picture: which sequence holds which page, and how full it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from .axes import axes_or_new

_HEIGHT = 0.7  # of a row
_MOST_INCHES = 40.0
_NUMBERED = 64  # pages in a row; in longer ones numbers would not be legible


class PageRow(NamedTuple):
    """One sequence of a page table."""

    id: int
    pages: Sequence[int]
    """In the order of its tokens; -1 for evicted ones."""
    length: int
    """Of its tokens, the pending ones included."""
    pending: int


def draw_pages(rows: Sequence[PageRow], page_size: int, free: int, ax: Any) -> Any:
    """Draw a page table; see `PagedKVCache.plot`. `free` is how many pages nobody holds."""
    most = max((len(row.pages) for row in rows), default=1)
    size = (min(1.5 + 0.45 * max(most, 6), _MOST_INCHES), 1.2 + 0.5 * max(len(rows), 1))
    ax = axes_or_new(ax, "PagedKVCache.plot", size=(size[0], min(size[1], _MOST_INCHES)))
    holders = Counter(page for row in rows for page in set(row.pages) if page >= 0)
    for place, row in enumerate(rows):
        _draw_row(ax, row, place, page_size, holders)
    ax.set(
        xlim=(-0.1, max(most, 1) + 0.1),
        ylim=(max(len(rows), 1) - 0.5, -0.6),
        xlabel=f"page of the sequence, {page_size} tokens each",
    )
    ax.set_yticks(range(len(rows)), [f"sequence {row.id}" for row in rows])
    ax.xaxis.get_major_locator().set_params(integer=True)
    shared = sum(count > 1 for count in holders.values())
    ax.set_title(f"{len(holders)} pages held, {shared} of them shared; {free} free", fontsize=10)
    return ax


def _draw_row(ax: Any, row: PageRow, place: int, page_size: int, holders: Counter[int]) -> None:
    """Draw the pages of one sequence from left to right."""
    top = place - _HEIGHT / 2
    committed = row.length - row.pending
    for number, page in enumerate(row.pages):
        begin = number * page_size
        if page < 0:
            ax.plot([number + 0.1, number + 0.9], [place, place], color="0.6", linestyle=":")
            continue
        for low, high, style in (
            (0, committed, {"facecolor": "0.85", "edgecolor": "none"}),
            (committed, row.length, {"facecolor": "white", "edgecolor": "0.4", "hatch": "////"}),
        ):
            first, last = max(low, begin), min(high, begin + page_size)
            if first < last:
                width = (last - first) / page_size
                left = number + (first - begin) / page_size
                ax.add_patch(_rectangle(left, top, width, linewidth=0, **style))
        shared = holders[page] > 1
        frame = {"facecolor": "none", "edgecolor": "black", "linewidth": 2.2 if shared else 0.7}
        ax.add_patch(_rectangle(number, top, 1.0, **frame))
        if len(row.pages) <= _NUMBERED:
            weight = "bold" if shared else "normal"
            ax.text(number + 0.5, place, str(page), ha="center", va="center", weight=weight)


def _rectangle(left: float, top: float, width: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, _HEIGHT, **style)
