"""What the decoding loop and the drafters need of a model's cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class RunnerCache(Protocol):
    """The cache of a :class:`kvctl.ModelRunner`.

    :class:`kvctl.PagedKVCache` and :class:`kvctl.engine.compiled.replay.ReplayingCache` have these
    methods; see there for what they raise.
    """

    @property
    def num_available_tokens(self) -> int:
        """Tokens that fit beside those cached now."""
        ...

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence."""
        ...

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; its checkpoints become invalid."""
        ...

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Make `child` a copy of the first `position` tokens of `parent`; -1 takes all."""
        ...

    def __contains__(self, seq_id: int) -> bool: ...

    def clear(self) -> None:
        """Remove every sequence."""
        ...

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, pending ones included."""
        ...

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        ...

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> None:
        """Commit the kept pending nodes of each sequence and drop its others."""
        ...

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Drop the pending nodes of the named sequences, of all by default."""
        ...

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last n tokens of a sequence."""
        ...

    def checkpoint(self, seq_id: int) -> Any:
        """Return a point that :meth:`rollback` can return to exactly."""
        ...

    def rollback(self, seq_id: int, checkpoint: Any) -> None:
        """Make a sequence exactly what it was at the checkpoint."""
        ...
