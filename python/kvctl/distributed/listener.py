"""The controller's ends of the sockets by which workers say what is no report of a step."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Mapping
from threading import Thread, current_thread

from .messages.reports import Reports
from .messages.wire import BREAK, FAILED, VALUE, Port
from .worker_state import Worker

_LOOK_MILLISECONDS = 1000


class Listener:
    """Listens to workers while the controller's thread is in a step, with a thread of its own.

    It hands on what workers have to tell each other, and ends waits that nobody else would: worker
    0's for one that has died or is stopped, and others' for one that has failed.

    Parameters
    ----------
    first : Worker
        The worker of this process.
    port : Port
        The other end of its socket.
    """

    def __init__(self, first: Worker, port: Port) -> None:
        self._first = first
        self._ports = {0: port}
        self._reports: Reports | None = None
        self._ended: set[int] = set()  # workers whose sockets have
        self._stop, self._stopped = socket.socketpair()
        self._thread = Thread(target=self._listen, daemon=True)

    def start(self, ports: Mapping[int, Port]) -> None:
        """Listen to workers by their numbers."""
        self._ports.update(ports)
        self._thread.start()

    def follow(self, reports: Reports | None) -> None:
        """Look at a step from now on, or at none."""
        self._reports = reports
        if reports is not None:
            for number in sorted(self._ended & reports.missing):
                reports.lose(number, "")

    def _listen(self) -> None:
        numbers = {port.fileno(): number for number, port in self._ports.items()}
        poll = select.poll()
        for fd in (self._stopped.fileno(), *numbers):
            poll.register(fd, select.POLLIN)
        while True:
            reports = self._reports
            for fd, _ in poll.poll(reports.milliseconds() if reports else _LOOK_MILLISECONDS):
                if fd not in numbers:
                    return
                try:
                    self._read(numbers[fd])
                except EOFError:
                    poll.unregister(fd)
                    self._ended.add(numbers[fd])
                    if (reports := self._reports) is not None:
                        reports.lose(numbers[fd], "")
            if (reports := self._reports) is not None:
                self.look_around(reports)

    def _read(self, number: int) -> None:
        for news in self._ports[number].receive():
            if (reports := self._reports) is not None:
                reports.heard(number)
                if news.kind == FAILED:
                    reports.take(number, news)
            if news.kind == VALUE:
                self._hand_out(news.payload)

    def look_around(self, reports: Reports) -> None:
        """End the waits for a worker that is lost, silent or has failed; any thread."""
        reports.check_silence()
        if (reports.lost or reports.broken or reports.blocked()) and (
            waiting := set(sorted(reports.missing)) - reports.told
        ):
            reports.told |= waiting
            self._wake(waiting)

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
        """Stop listening, and close the sockets."""
        self._stop.send(b"x")
        if self._thread.ident is not None and self._thread is not current_thread():
            self._thread.join()
        self.close_copies()

    def close_copies(self) -> None:
        """Close the sockets alone, as a fork does with its copies."""
        for end in (self._stop, self._stopped):
            end.close()
        for port in self._ports.values():
            port.close()
