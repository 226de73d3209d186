"""Which part of a parameter each of several workers has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Range = tuple[int, int]


@dataclass(frozen=True)
class Split:
    """Which part of a parameter each worker has, along one axis.

    Parameters
    ----------
    axis : int
        The axis.
    local : tuple of int
        Extents of the parts of a worker's share, one after another; equal on all workers.
    ranges : tuple
        For each worker the range of the whole parameter that begins each of its parts; what a part
        has beyond it is filled.
    fill : str
        "zero" or "minus_infinity".
    """

    axis: int
    local: tuple[int, ...]
    ranges: tuple[tuple[Range, ...], ...]
    fill: str = "zero"

    def to_json(self) -> dict[str, Any]:
        """Return it as a library's metadata has it."""
        return {
            "axis": self.axis,
            "local": list(self.local),
            "ranges": [[list(part) for part in worker] for worker in self.ranges],
            "fill": self.fill,
        }

    def in_units(self, unit: int) -> Split:
        """Return the same along an axis whose elements stand for `unit` each."""
        ranges = tuple(
            tuple((begin // unit, end // unit) for begin, end in parts) for parts in self.ranges
        )
        return replace(self, local=tuple(size // unit for size in self.local), ranges=ranges)
