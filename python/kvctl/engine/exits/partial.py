"""Pending rows that ran the first layers of a compiled model only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ...cache.step_arguments import MaskLike


class PendingLengths(Protocol):
    """What is asked of a cache here."""

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        ...


@dataclass(frozen=True)
class Forwarded:
    """The share of one sequence in a forward, to run it again with all layers."""

    tokens: npt.NDArray[np.int64]
    mask: MaskLike | None
    positions: npt.ArrayLike | None = None


class PartialRows:
    """What the pending rows of sequences ran, where that was not all layers."""

    def __init__(self) -> None:
        self._until: dict[int, int] = {}
        self._forwards: dict[int, list[Forwarded]] = {}

    def __len__(self) -> int:
        return len(self._until)

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

    def record(self, seq_ids: Sequence[int], until: int, shares: Sequence[Forwarded]) -> None:
        """Keep what ran `until` layers."""
        for seq_id, share in zip(seq_ids, shares, strict=True) if until else ():
            self._until[seq_id] = until
            self._forwards.setdefault(seq_id, []).append(share)

    def forget(self, seq_ids: Sequence[int]) -> None:
        """Forget the rows of sequences: they are dropped, or complete."""
        for seq_id in seq_ids:
            self._until.pop(seq_id, None)
            self._forwards.pop(seq_id, None)

    def waiting(self, cache: PendingLengths, seq_id: int) -> list[Forwarded]:
        """Return the forwards that made the pending rows of a sequence.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If its pending rows are not those of forwards with one ``layers=``.
        """
        count = cache.pending_length(seq_id)
        forwards = self._forwards.get(seq_id, [])
        known = sum(len(one.tokens) for one in forwards)
        if count == 0 or not forwards:
            raise ValueError(f"sequence {seq_id} has no rows that wait for their other layers")
        if known != count:
            raise ValueError(
                f"sequence {seq_id} has {count} of {known} pending rows left, so that they cannot "
                "be completed; abort them"
            )
        return forwards


def joined(parts: Sequence[Any]) -> Any:
    """Return the rows of several tensors of the CPU as one array."""
    return parts[0] if len(parts) == 1 else np.concatenate([np.from_dlpack(p) for p in parts])
