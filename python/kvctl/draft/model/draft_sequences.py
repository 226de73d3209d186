"""The sequences of a draft model: kept in step with the texts that are drafted for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._ffi.errors import OutOfPagesError
from ...mask import Mask
from ..arrays import to_host
from ..request import Request
from .runner import DraftRunner

if TYPE_CHECKING:
    import numpy.typing as npt


class DraftSequences:
    """A sequence of the draft model's cache for each text; between rounds nothing is pending.

    A sequence holds the first tokens of its text, perhaps not all: `catch_up` appends what is
    missing. A text for which there is no room has none; it gets one when another text has finished.

    Parameters
    ----------
    runner
        The draft model. Its other sequences are left alone.
    """

    def __init__(self, runner: DraftRunner) -> None:
        self._runner = runner
        self._ids: dict[int, int] = {}
        self._next_id = 0  # not the lowest that is free: with many texts the search takes long
        self._crowded: set[int] = set()  # texts for which there was no room

    def __contains__(self, request: Request) -> bool:
        return request.id in self._ids

    def depth_room(self, request: Request) -> int | None:
        """Return how many nodes may follow the root on a path; None where nothing limits it."""
        window = self._runner.context_window_size
        return None if window is None else window - len(request.tokens)

    def id_of(self, request: Request) -> int:
        """Return the sequence of a text that has one."""
        return self._ids[request.id]

    def catch_up(self, requests: Sequence[Request]) -> dict[int, Any]:
        """Append the tokens that sequences lack, the roots too.

        Returns
        -------
        dict
            By the ids of the texts that have a sequence, what the model says after their roots:
            (V,) float32, on the host. Texts for which there is no room are missing.
        """
        ready = [request for request in requests if self._enter(request)]
        while ready:
            ids = [self._ids[request.id] for request in ready]
            try:
                rows = self._append(ids, [self._lacking(request) for request in ready])
            except OutOfPagesError:
                self._leave(ready.pop())
                continue
            return {request.id: row for request, row in zip(ready, rows, strict=True)}
        return {}

    def grow(
        self, ids: Sequence[int], tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]]
    ) -> npt.NDArray[Any] | None:
        """Forward new nodes of pending trees.

        Parameters
        ----------
        ids, tokens
            Sequences, and the new nodes of each.
        parents
            Their parents among the pending nodes of the sequence; -1 is the root, which is
            committed.

        Returns
        -------
        numpy.ndarray or None
            (nodes, V) float32, tree after tree; None, and nothing has changed, where there is no
            room.
        """
        masks = [Mask.tree(above) for above in parents]
        try:
            return to_host(self._runner.forward(ids, tokens, mask=masks))
        except OutOfPagesError:
            return None

    def leave_to_target(self, requests: Sequence[Request]) -> None:
        """Do nothing: the caches are two."""

    def keep(self, kept: dict[int, list[int]]) -> None:
        """Commit the named pending nodes of each sequence, and drop its others."""
        pending = {id: rows for id, rows in kept.items() if self._runner.cache.pending_length(id)}
        if pending:
            self._runner.cache.commit(list(pending), list(pending.values()))

    def drop_pending(self, requests: Iterable[Request]) -> None:
        """Drop what is pending: a round was given up."""
        ids = [self._ids[request.id] for request in requests if request in self]
        ids = [id for id in ids if self._runner.cache.pending_length(id)]
        if ids:
            self._runner.cache.abort(ids)

    def finish(self, request: Request) -> None:
        """Remove a text's sequence; others may have its room."""
        id = self._ids.get(request.id)
        if id is not None and id in self._runner.cache:
            self._runner.cache.remove_sequence(id)
        self._ids.pop(request.id, None)
        self._crowded.clear()

    def _enter(self, request: Request) -> bool:
        """Return whether a text has a sequence, and its context has room for the root."""
        window = self._runner.context_window_size
        if window is not None and len(request.tokens) > window:
            return False
        if request.id in self._ids or request.id in self._crowded:
            return request.id in self._ids
        cache, id = self._runner.cache, self._next_id
        while id in cache:
            id += 1
        self._next_id = id + 1
        self._ids[request.id] = id  # first: a sequence whose text is not known would stay for ever
        try:
            cache.add_sequence(id)
        except ValueError:  # as many sequences as the cache was made for
            del self._ids[request.id]
            self._crowded.add(request.id)
            return False
        return True

    def _leave(self, request: Request) -> None:
        self._runner.cache.remove_sequence(self._ids[request.id])
        del self._ids[request.id]
        self._crowded.add(request.id)

    def _lacking(self, request: Request) -> list[int]:
        """Return the tokens that a sequence lacks, the root always among them."""
        cache, id, size = self._runner.cache, self._ids[request.id], len(request.tokens)
        held = cache.sequence_length(id)
        if held >= size:  # the root came with a round that the text then was left out of
            cache.popn(id, held - size + 1)
            held = size - 1
        return list(request.tokens[held:])

    def _append(self, ids: Sequence[int], tokens: Sequence[list[int]]) -> npt.NDArray[Any]:
        if all(len(new) == 1 for new in tokens):
            return to_host(self._runner.decode(ids, np.array([new[0] for new in tokens])))
        return to_host(self._runner.prefill(ids, tokens))
