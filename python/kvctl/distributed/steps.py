"""The controller's ends of the sockets by which steps go to workers, and reports come back."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping

from .messages.reports import Reports
from .messages.wire import Port, Waiter

#: Milliseconds that a full socket is waited for before a look around.
_FULL_MILLISECONDS = 100


class Steps:
    """Sends steps to the workers of other processes, and waits for their reports.

    Parameters
    ----------
    spin : float
        Seconds for which reports are polled before the thread sleeps.
    look_around : callable
        Called with the reports of a step whenever a wait was long; it may lose a worker.
    """

    def __init__(self, spin: float, look_around: Callable[[Reports], None]) -> None:
        self._waiter = Waiter(spin)
        self._look_around = look_around
        self._ports: dict[int, Port] = {}
        self._numbers: dict[int, int] = {}

    def add(self, ports: Mapping[int, Port]) -> None:
        """Take the workers' ports, by their numbers."""
        for number, port in ports.items():
            self._ports[number] = port
            self._numbers[port.fileno()] = number
            self._waiter.add(port.fileno())

    def send(self, worker: int, message: bytes, sent: list[int], reports: Reports) -> None:
        """Send a message, or what is left of it.

        Parameters
        ----------
        worker : int
            The worker; it is lost if its socket has ended.
        message : bytes
            The message.
        sent : list of int
            The bytes that have been sent, piece by piece. A list takes them in one step of
            Python's, so that an interrupt does not hide that they were sent.
        reports : Reports
            Of the step.
        """
        end = self._ports[worker].socket
        left = memoryview(message)
        while (at := sum(sent)) < len(left) and reports.lost is None:
            try:
                sent += map(end.send, [left[at:]], [socket.MSG_DONTWAIT])
                reports.heard(worker)
            except BlockingIOError:
                full = select.poll()
                full.register(end.fileno(), select.POLLOUT)
                full.poll(_FULL_MILLISECONDS)
                self._look_around(reports)
            except OSError:
                reports.lose(worker, "")

    def collect(self, reports: Reports) -> None:
        """Wait until all workers have reported, or one is lost."""
        while reports.missing and reports.lost is None:
            found = self._waiter.wait(reports.milliseconds())
            for fd, _ in found:
                number = self._numbers[fd]
                try:
                    for message in self._ports[number].receive():
                        reports.take(number, message)
                except EOFError:
                    reports.lose(number, "")
            if not found or reports.failures:
                self._look_around(reports)

    def close(self) -> None:
        """Close the sockets, which ends the workers' waits for steps."""
        for port in self._ports.values():
            port.end()
