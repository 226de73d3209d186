"""The controller's ends of the workers' sockets."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable, Mapping

from .reports import Reports
from .wire import BREAK, VALUE, Port
from .worker_state import Worker


class Listener:
    """Collects what workers report, and hands on what they have to tell each other.

    Parameters
    ----------
    first : Worker
        The worker of this process.
    port : Port
        The other end of its socket.
    library : {"gloo", "nccl"}
        What connects the workers.
    """

    def __init__(self, first: Worker, port: Port, library: str) -> None:
        self._first = first
        self._wakes_itself = library == "nccl"
        self._ports: dict[int, Port] = {}
        self._numbers: dict[int, int] = {}
        self._poll = select.poll()
        self.add({0: port})

    def add(self, ports: Mapping[int, Port]) -> None:
        """Listen to workers by their numbers."""
        for number, port in ports.items():
            self._ports[number] = port
            self._numbers[port.fileno()] = number
            self._poll.register(port.fileno(), select.POLLIN)

    def collect(self, reports: Reports) -> tuple[int, str] | None:
        """Wait for the reports of a call.

        Returns
        -------
        tuple, optional
            A worker without which the session cannot go on, and what it did; of one that has
            ended, an empty text.
        """
        told: set[int] = set()
        while reports.missing:
            for fd, _ in self._poll.poll(reports.milliseconds()):
                number = self._numbers[fd]
                try:
                    self._read(number, reports)
                except EOFError:
                    return number, ""
            silent = reports.silent()
            if silent is not None:
                return silent, f"has not answered for {reports.patience:.0f} s"
            if reports.blocked():
                self._leave(reports.failures)
            if self._wakes_itself and reports.broken and reports.missing - told:
                self._leave(reports.missing - told)
                told |= reports.missing
        if reports.diverged is not None:
            worker, message = reports.diverged
            return worker, f"could not follow the others ({message})"
        return None

    def _read(self, number: int, reports: Reports) -> None:
        for news in self._ports[number].receive():
            reports.heard(number)
            if news.kind == VALUE:
                self._hand_out(news.payload)
            else:
                reports.take(number, news)

    def _hand_out(self, payload: bytes) -> None:
        """Tell all workers what one of them has to say."""
        self._first.learn(payload)
        for number, port in self._ports.items():
            if number > 0:
                with contextlib.suppress(OSError):  # a dead worker is noticed by its socket's end
                    port.send(VALUE, 0, payload)

    def _leave(self, workers: Iterable[int]) -> None:
        """Close connections, so that workers that wait in collectives raise.

        With Gloo those of workers that wait for nothing: one that waits is not woken by closing its
        own end, and then hears nothing of the other's. With NCCL those of workers that wait, which
        nothing else wakes.
        """
        for number in workers:
            if number == 0:
                self._first.close_connections()
            else:
                with contextlib.suppress(OSError):
                    self._ports[number].send(BREAK)

    def close(self) -> None:
        """Close the sockets."""
        for port in self._ports.values():
            port.close()
