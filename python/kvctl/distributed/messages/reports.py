"""What workers report of one call."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from .wire import DONE, FAILED, TIMES, Message

#: Seconds that the others have to report the same mistake, before their wait is broken off.
_GRACE_SECONDS = 1.0


class Failure(NamedTuple):
    """Why a call failed on one worker."""

    kind: str
    message: str
    mistake: bool  #: the user's: raised before the model ran, so that nobody waits


class Reports:
    """The reports of one call, as they come in.

    The thread that makes the call takes them, and the thread that listens to workers looks on.

    Attributes
    ----------
    missing, done : set of int
        The workers that have not reported, and those on which the call is done.
    failures : dict
        Why it failed on others.
    times : dict
        When it began and ended on those that have done it, by each worker's monotonic clock.
    lost : tuple, optional
        A worker without which the session cannot go on, and what it did; of one that has ended, an
        empty text.
    broken : bool
        Whether collectives were broken off.
    """

    def __init__(self, number: int, workers: int, who: int, patience: float) -> None:
        self.patience = patience
        self.missing = {worker for worker in range(workers) if who >> worker & 1}
        self.done: set[int] = set()
        self.times: dict[int, tuple[float, float]] = {}
        self.failures: dict[int, Failure] = {}
        self.lost: tuple[int, str] | None = None
        self.broken = False
        self.told: set[int] = set()  # to break off their collectives
        self._number = number
        self._heard = dict.fromkeys(self.missing, time.monotonic())
        self._first_failure: float | None = None

    def heard(self, worker: int) -> None:
        """Note that a worker lives."""
        self._heard[worker] = time.monotonic()

    def take(self, worker: int, message: Message) -> None:
        """Take a worker's report."""
        if message.number != self._number or worker not in self.missing:
            return
        if message.kind == DONE:
            self.done.add(worker)
            self.times[worker] = TIMES.unpack(message.payload)
        elif message.kind == FAILED:
            report: dict[str, Any] = json.loads(message.payload)
            self.failures[worker] = Failure(report["kind"], report["message"], report["mistake"])
            self._first_failure = self._first_failure or time.monotonic()
            if not report["mistake"]:
                self.broken = True
            if report["kind"] == "DivergedError":
                self.lose(worker, f"could not follow the others ({report['message']})")
        else:
            return
        self.missing.discard(worker)  # last: the caller's thread goes on when nobody is missing

    def lose(self, worker: int, what: str) -> None:
        """Note that a worker has ended (an empty text), or what else it did."""
        self.lost = self.lost or (worker, what)

    def milliseconds(self) -> float:
        """Return how long to wait for the next report before looking around."""
        return 100.0 if self.failures else 1000.0

    def check_silence(self) -> None:
        """Lose a worker that has not been heard of for too long. Worker 0 is this process."""
        oldest = time.monotonic() - self.patience
        for worker in sorted(self.missing):
            if worker and self._heard[worker] < oldest:
                self.lose(worker, f"has not answered for {self.patience:.0f} s")

    def blocked(self) -> bool:
        """Return, once, whether others may wait for a worker that failed alone."""
        first = self._first_failure
        if not self.missing or self.broken or first is None:
            return False
        self.broken = time.monotonic() - first > _GRACE_SECONDS
        return self.broken

    def cause(self) -> tuple[int, Failure]:
        """Return the failure that the others follow from, and its worker."""
        return min(
            self.failures.items(),
            key=lambda item: (not item[1].mistake and _is_connection(item[1]), item[0]),
        )


def _is_connection(failure: Failure) -> bool:
    """Return whether a worker failed because another did."""
    return "gloo" in failure.message or "nccl" in failure.message.lower()
