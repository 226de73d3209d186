"""The target's own sequences, through a view, for the time of drafting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..._ffi.errors import OutOfPagesError
from ..arrays import to_host
from ..request import Request
from .view import View

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


class OwnSequences:
    """Rows that a model drafts with are pending in its own cache, and dropped before it verifies.

    Parameters
    ----------
    runner
        The target.
    view
        What it leaves out.
    """

    def __init__(self, runner: Any, view: View) -> None:
        self._runner = runner
        self._view = view

    def __contains__(self, request: Request) -> bool:
        return request.seq_id in self._runner.cache

    def id_of(self, request: Request) -> int:
        """Return the text's sequence in the target's cache."""
        return request.seq_id

    def depth_room(self, request: Request) -> int | None:
        """Return how many nodes may follow the root on a path."""
        window = self._runner.context_window_size
        return None if window is None else window - len(request.tokens)

    def catch_up(self, requests: Sequence[Request]) -> dict[int, Any]:
        """Forward the roots, pending."""
        ready = list(requests)
        while ready:
            rows = self._forward(
                [request.seq_id for request in ready],
                [[request.root] for request in ready],
                [[-1]] * len(ready),
            )
            if rows is not None:
                return {request.id: row for request, row in zip(ready, rows, strict=True)}
            ready.pop()
        return {}

    def grow(
        self, ids: Sequence[int], tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]]
    ) -> npt.NDArray[Any] | None:
        """Forward new nodes, pending behind the root."""
        return self._forward(ids, tokens, [[parent + 1 for parent in above] for above in parents])

    def leave_to_target(self, requests: Sequence[Request]) -> None:
        """Drop all rows of the drafts: the target writes its own."""
        self.drop_pending(requests)

    def keep(self, kept: dict[int, list[int]]) -> None:
        """Keep nothing: the target's rows are in the cache."""

    def drop_pending(self, requests: Iterable[Request]) -> None:
        """Drop the rows of drafts."""
        cache = self._runner.cache
        ids = [request.seq_id for request in requests if request in self]
        ids = [id for id in ids if cache.pending_length(id)]
        if ids:
            cache.abort(ids)

    def finish(self, request: Request) -> None:
        """Do nothing: the loop removes the sequence."""

    def _forward(
        self, ids: Sequence[int], tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]]
    ) -> npt.NDArray[Any] | None:
        masks = [self._view.mask(above) for above in parents]
        try:
            with self._selecting():
                logits = self._runner.forward(
                    ids, tokens, mask=masks, pending=True, **self._view.options()
                )
        except OutOfPagesError:
            return None
        return to_host(logits)

    @contextmanager
    def _selecting(self) -> Iterator[None]:
        if self._view.select is None:
            yield
            return
        self._runner.cache.select_pages(self._view.select)
        try:
            yield
        finally:
            self._runner.cache.select_pages(None)
