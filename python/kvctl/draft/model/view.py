"""What a model may leave out when it drafts for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from ...mask import Mask


@dataclass(frozen=True)
class View:
    """A cheaper way through the same weights and cache.

    Attributes
    ----------
    window : int or None
        Attend to the last so many tokens only, and to the sinks.
    sinks : int
        The first tokens of a text, which are always seen.
    layers : int or None
        Run only the first so many layers, then the output layer.
    select : callable or None
        A page selector, as ``kvctl.PagedKVCache.select_pages`` takes it.
    """

    window: int | None = None
    sinks: int = 4
    layers: int | None = None
    select: Callable[[int, Any], Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("window", self.window, 1),
            ("sinks", self.sinks, 0),
            ("layers", self.layers, 1),
        ):
            if value is not None and index(value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.window is None and self.layers is None and self.select is None:
            raise ValueError(
                "a model that drafts for itself must leave something out: give window, layers or "
                "select"
            )

    def mask(self, parents: Sequence[int]) -> Mask:
        """Return the mask of new nodes of a tree."""
        tree = Mask.tree(parents)
        return tree if self.window is None else tree & Mask.window(self.window, self.sinks)

    def options(self) -> dict[str, Any]:
        """Return what a forward takes for it."""
        return {} if self.layers is None else {"layers": range(self.layers)}
