"""What a drafter needs of its draft model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class DraftModelCache(Protocol):
    """The part of a cache that a draft model's sequences need."""

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence."""
        ...

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence."""
        ...

    def __contains__(self, seq_id: int) -> bool: ...

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
        """Drop the pending nodes of the named sequences."""
        ...

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last n tokens of a sequence."""
        ...


class DraftModel(Protocol):
    """A model that drafts: its cache and its sizes, whatever its forwards take."""

    @property
    def cache(self) -> DraftModelCache:
        """The cache that holds its sequences."""
        ...

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        ...

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most."""
        ...

    @property
    def context_window_size(self) -> int | None:
        """Tokens that a sequence may have; None without a limit."""
        ...


class DraftRunner(DraftModel, Protocol):
    """A draft model that reads tokens; every ``kvctl.engine.Runner`` is one."""

    def prefill(self, seq_ids: Sequence[int], tokens: Sequence[Any]) -> Any:
        """Append tokens; logits (B, vocab_size) behind each sequence's."""
        ...

    def decode(self, seq_ids: Sequence[int], tokens: Any) -> Any:
        """Append one token to each sequence; logits (B, vocab_size)."""
        ...

    def forward(self, seq_ids: Sequence[int], tokens: Sequence[Any], *, mask: Any = None) -> Any:
        """Forward new tokens under masks; logits (new tokens, vocab_size)."""
        ...
