"""The exception of a worker that failed."""

from __future__ import annotations


class WorkerError(RuntimeError):
    """A worker failed or died; the message names it.

    Attributes
    ----------
    worker : int
        The worker, counted from 0.
    closed : bool
        Whether the session is closed: load a new one. Otherwise nothing has happened, on no worker.
    """

    def __init__(self, message: str, *, worker: int, closed: bool) -> None:
        super().__init__(message)
        self.worker = worker
        self.closed = closed
