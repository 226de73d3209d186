"""A draft model that reads and speaks the target's vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.errors import OutOfPagesError
from ..arrays import to_host
from .runner import DraftModelCache, DraftRunner
from .vocabulary_map import VocabularyMap


class MappedRunner:
    """A `DraftRunner` of another one: tokens are the target's, and so are the rows of logits.

    A token of the target may be several of the draft model's: lengths, and what is taken back, are
    counted in the target's.

    Parameters
    ----------
    runner
        The draft model.
    vocabulary
        Its vocabulary and the target's.

    Raises
    ------
    ValueError
        If the map is not of this model's vocabulary.
    """

    def __init__(self, runner: DraftRunner, vocabulary: VocabularyMap) -> None:
        if runner.vocab_size < len(vocabulary.draft_ids) or (
            int(vocabulary.draft_ids.max()) >= runner.vocab_size
        ):
            raise ValueError(
                f"the vocabulary map names the draft model's token {vocabulary.draft_ids.max()}, "
                f"but the model has {runner.vocab_size} tokens"
            )
        self._runner = runner
        self._vocabulary = vocabulary
        self._cache = MappedCache(runner.cache)

    @property
    def cache(self) -> MappedCache:
        """The draft model's cache, counted in the target's tokens."""
        return self._cache

    @property
    def vocab_size(self) -> int:
        """The target's vocabulary size."""
        return self._vocabulary.target_size

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most."""
        return self._runner.prefill_chunk_size

    @property
    def context_window_size(self) -> int | None:
        """Tokens that a sequence may have, if each is one of the draft model's."""
        return self._runner.context_window_size

    def prefill(
        self, seq_ids: Sequence[int], tokens: Sequence[Iterable[int]]
    ) -> npt.NDArray[np.float32]:
        """Append the target's tokens, as the draft model spells them."""
        spelled = [[self._vocabulary.spell(int(token)) for token in new] for new in tokens]
        flat = [[id for token in new for id in token] for new in spelled]
        window = self._runner.context_window_size
        for seq_id, new in zip(seq_ids, flat, strict=True):
            length = self._runner.cache.sequence_length(seq_id) + len(new)
            if window is not None and length > window:
                raise OutOfPagesError(
                    f"sequence {seq_id} would have {length} tokens of the draft model, whose "
                    f"context is {window}"
                )
        logits = self._runner.prefill(seq_ids, flat)
        for seq_id, parts in zip(seq_ids, spelled, strict=True):
            self._cache.appended(seq_id, [len(part) for part in parts])
        return self._vocabulary.to_target(to_host(logits))

    def decode(self, seq_ids: Sequence[int], tokens: Iterable[int]) -> npt.NDArray[np.float32]:
        """Append a token of the target to each sequence."""
        return self.prefill(seq_ids, [[token] for token in tokens])

    def forward(
        self, seq_ids: Sequence[int], tokens: Sequence[Sequence[int]], *, mask: Any = None
    ) -> npt.NDArray[np.float32]:
        """Forward nodes of a tree, which are shared tokens."""
        mapped = [self._vocabulary.to_draft(new) for new in tokens]
        logits = self._runner.forward(seq_ids, mapped, mask=mask)
        return self._vocabulary.to_target(to_host(logits))


class MappedCache:
    """A cache whose lengths are counted in the target's tokens."""

    def __init__(self, cache: DraftModelCache) -> None:
        self._cache = cache
        self._parts: dict[int, list[int]] = {}  # of each committed token

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence."""
        self._cache.add_sequence(seq_id)
        self._parts[seq_id] = []

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence."""
        self._cache.remove_sequence(seq_id)
        self._parts.pop(seq_id, None)

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._cache

    def sequence_length(self, seq_id: int) -> int:
        """Return how many of the target's tokens a sequence has, pending ones included."""
        return len(self._parts[seq_id]) + self.pending_length(seq_id)

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence; each is one of either model's."""
        return self._cache.pending_length(seq_id)

    def appended(self, seq_id: int, parts: Sequence[int]) -> None:
        """Remember how many of the draft model's tokens each appended token is."""
        self._parts[seq_id] += parts

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> None:
        """Commit the kept pending nodes of each sequence and drop its others."""
        rows = [list(nodes) for nodes in kept]
        self._cache.commit(seq_ids, rows)
        for seq_id, nodes in zip(seq_ids, rows, strict=True):
            self._parts[seq_id] += [1] * len(nodes)

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Drop the pending nodes of the named sequences."""
        self._cache.abort(seq_ids)

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the target's last n tokens of a sequence without pending nodes."""
        parts = self._parts[seq_id]
        self._cache.popn(seq_id, sum(parts[len(parts) - n :]))
        del parts[len(parts) - n :]
