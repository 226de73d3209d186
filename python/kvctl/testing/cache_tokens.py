"""One sequence of :class:`kvctl.testing.cache_model.CacheModel`: a plain list of tokens."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Window:
    """A token sees the latest ``size`` positions, its own included, and the first ``sinks``."""

    size: int
    sinks: int = 0
    horizon: int = 0
    """How far behind the window tokens are kept, to go back to."""
    renumber_sinks: bool = False
    """Tokens beyond position ``size + sinks - 1`` see the sinks as if they were there."""


def descends(positions: Seq[int]) -> bool:
    """Whether a position is lower than the one before it."""
    return any(after < before for before, after in pairwise(positions))


@dataclass
class Tokens:
    """One sequence; tokens are numbers, the rows of the model's K/V tables."""

    committed: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Parent of each pending token as an index into ``pending``; -1 is the committed context."""
    depths: list[int] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    """Which pending tokens came under a mask that is no tree, so that they have no path."""
    positions: list[int] = field(default_factory=list)
    """Of all tokens, pending ones after the committed."""
    next_position: int = 0
    """The position of the next committed token."""
    window: Window | None = None
    evicted: set[int] = field(default_factory=set)
    """Tokens that a cache may have evicted behind the window; dropped ones stay listed."""
    birth: int = 0
    """Which sequence of its id this is: a later one of the same id is another."""

    def copy(self) -> Tokens:
        """Return an independent copy."""
        return Tokens(
            list(self.committed),
            list(self.pending),
            list(self.parents),
            list(self.depths),
            list(self.masked),
            list(self.positions),
            self.next_position,
            self.window,
            set(self.evicted),
            self.birth,
        )

    def __len__(self) -> int:
        return len(self.committed) + len(self.pending)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens, pending ones counted after the committed."""
        if length < len(self.committed):
            self.next_position = self.positions[length]
        nodes = max(length - len(self.committed), 0)
        del self.committed[length:]
        del self.pending[nodes:], self.parents[nodes:], self.depths[nodes:], self.masked[nodes:]
        del self.positions[length:]

    def commit(self, kept: Seq[int]) -> None:
        """Commit some pending tokens and drop the others."""
        past = len(self.committed)
        numbers = [self.pending[node] for node in kept]
        positions = [self.positions[past + node] for node in kept]
        self.truncate(past)
        self.committed += numbers
        self.positions += positions
        if positions:
            self.next_position = positions[-1] + 1

    def slide(self) -> None:
        """Mark as evicted what lies behind the window and its horizon."""
        if self.window is not None:
            passed = self.next_position - self.window.horizon - self.window.size
            for token, position in zip(self.committed, self.positions, strict=False):
                if self.window.sinks <= position <= passed:
                    self.evicted.add(token)

    def shows_evicted(self, window: Window | None, next_position: int) -> bool:
        """Whether a token at a position would see, in this window, what may be evicted."""
        if window is None:
            return False
        # Pending tokens, once committed in place, may have passed the window; back at a checkpoint
        # they are pending again, and seen.
        return not self.evicted.isdisjoint(self.pending) or any(
            token in self.evicted
            and (position > next_position - window.size or position < window.sinks)
            for token, position in zip(self.committed, self.positions, strict=False)
        )

    @property
    def descends(self) -> bool:
        """Whether a committed token, or the next one, has a lower position than the one before."""
        return descends([*self.positions[: len(self.committed)], self.next_position])

    @property
    def is_chain(self) -> bool:
        """Whether every pending token follows the one before it."""
        return self.parents == list(range(-1, len(self.parents) - 1))

    def logical_positions(self) -> npt.NDArray[np.int64]:
        """Return the positions that windows measure; a pending token's follows from its depth."""
        pending = [self.next_position + depth for depth in self.depths]
        return np.array(self.positions[: len(self.committed)] + pending)

    def ancestors(self, node: int) -> list[int]:
        """Return a pending node and its ancestors, oldest first, as indices into ``pending``."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def follow_their_paths(self, kept: Seq[int]) -> bool:
        """Whether each kept node of a tree has exactly its ancestors kept before it."""
        return all(
            self.masked[node] or self.ancestors(node) == list(kept[: index + 1])
            for index, node in enumerate(kept)
        )

    def in_windows(self, length: int, layer_window: int) -> npt.NDArray[np.bool_]:
        """Return which columns the windows of the sequence and of a layer show."""
        position = self.logical_positions()
        own = position[-length:, None]
        see = np.full((length, len(position)), True)
        if self.window is not None:
            near = (position > own - self.window.size) & (position <= own)
            see &= near | ((position < self.window.sinks) & (position <= own))
        if layer_window:
            see &= (position > own - layer_window) & (position <= own)
        return see

    def extended(
        self,
        length: int,
        mask: Seq[int] | npt.NDArray[np.bool_] | None,
        pending: bool | None,
        new_token: Callable[[], int],
    ) -> tuple[Tokens, npt.NDArray[np.bool_] | None, bool]:
        """Return the grown sequence, its boolean mask if any, and whether it stays pending."""
        old = len(self.pending)
        after = self.copy()
        visible = None
        is_tree = mask is not None and np.ndim(np.asarray(mask)) == 1
        if mask is not None and not is_tree:
            visible = np.asarray(mask, bool)
            columns = len(self.committed) + old + length
            if visible.shape != (length, columns):
                raise ValueError(f"a mask of shape {visible.shape}, not {(length, columns)}")
        if is_tree:
            assert mask is not None
            parents = [int(parent) for parent in mask]
            if len(parents) != length:
                raise ValueError(f"{len(parents)} parents for {length} tokens")
            if pending is False:
                raise ValueError("the tokens of a tree are pending")
        else:
            if old and not pending:
                raise ValueError("tokens are pending: commit or abort them first")
            if not self.is_chain:
                raise ValueError("the pending tokens branch: a tree must say where to go on")
            parents = list(range(old - 1, old + length - 1))
        for index, parent in enumerate(parents):
            if not -1 <= parent < old + index:
                raise ValueError(f"node {old + index} has parent {parent}")
            after.depths.append(0 if parent < 0 else after.depths[parent] + 1)
            after.positions.append(after.next_position + after.depths[-1])
            after.parents.append(parent)
            after.masked.append(visible is not None)
            after.pending.append(new_token())
        return after, visible, is_tree or bool(pending)
