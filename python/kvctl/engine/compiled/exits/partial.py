"""Pending rows that ran the first layers of a compiled model only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class PendingLengths(Protocol):
    """What is asked of a cache here."""

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        ...


class PartialRows:
    """What the pending rows of sequences ran, where that was not all layers."""

    def __init__(self) -> None:
        self._until: dict[int, int] = {}
        #: (rows, hidden_size) what enters the next layer, forward after forward.
        self._entering: dict[int, list[npt.NDArray[Any]]] = {}

    def check(self, cache: PendingLengths, seq_ids: Sequence[int], until: int) -> None:
        """Make sure that rows of one sequence all run the same layers.

        Parameters
        ----------
        cache : PendingLengths
            The model's cache.
        seq_ids : sequence of int
            Sequences that get new rows.
        until : int
            How many layers those run, 0 being all.

        Raises
        ------
        ValueError
            If pending rows ran others.
        """
        for seq_id in seq_ids if self._until or until else ():
            count = cache.pending_length(seq_id)
            if count == 0:
                self.forget([seq_id])
            elif self._until.get(seq_id, 0) != until:
                ran = self._until.get(seq_id, 0) or "all"
                raise ValueError(
                    f"sequence {seq_id} has {count} pending rows that ran {ran} layers; complete, "
                    "commit or abort them before rows that run others"
                )

    def record(
        self, seq_ids: Sequence[int], until: int, lengths: Sequence[int], entering: Any
    ) -> None:
        """Keep what enters the next layer: the rows of all sequences, one after another."""
        if not until:
            return
        rows, end = np.from_dlpack(entering), 0
        for seq_id, length in zip(seq_ids, lengths, strict=True):
            begin, end = end, end + length
            self._until[seq_id] = until
            self._entering.setdefault(seq_id, []).append(rows[begin:end])

    def forget(self, seq_ids: Sequence[int]) -> None:
        """Forget the rows of sequences: they are dropped, or complete."""
        for seq_id in seq_ids:
            self._until.pop(seq_id, None)
            self._entering.pop(seq_id, None)

    def waiting(
        self, cache: PendingLengths, seq_ids: Sequence[int]
    ) -> tuple[int, npt.NDArray[Any]]:
        """Return how many layers all pending rows ran, and what enters the next one.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a sequence has no such rows, or those of two stopped at different layers.
        """
        parts = []
        for seq_id in seq_ids:
            count = cache.pending_length(seq_id)
            rows = self._entering.get(seq_id, [])
            if count == 0 or sum(map(len, rows)) < count:
                raise ValueError(f"sequence {seq_id} has no rows that wait for their other layers")
            parts.append(np.concatenate(rows)[:count])  # popn drops the last
        stops = sorted({self._until[seq_id] for seq_id in seq_ids})
        if len(stops) != 1:
            raise ValueError(f"the sequences' rows stopped before different layers, {stops}")
        return stops[0], np.concatenate(parts)
