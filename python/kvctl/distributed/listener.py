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
    """

    def __init__(self, first: Worker, port: Port) -> None:
        self._first = first
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
            if (reports.broken or reports.blocked()) and (waiting := reports.missing - told):
                self._wake(waiting)
                told |= waiting
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

    def _wake(self, workers: Iterable[int]) -> None:
        """Have workers close their connections, so that their waits in collectives raise.

        That a peer has closed its own does not always wake them: never with NCCL, and with Gloo not
        every wait for a send.
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
