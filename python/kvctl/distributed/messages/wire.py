"""The messages between the controller and its workers, beside Disco's own channel.

Disco's replies come one worker after another and block for ever behind a dead one. Here every
worker has sockets of its own, which the controller polls, and which end when the worker does: one
for steps and their reports, and one for everything else.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from threading import Lock
from time import perf_counter
from typing import NamedTuple

_HEADER = struct.Struct("<cqI")

#: Worker to controller: it lives; a call is done; a call failed; a value for the others.
ALIVE, DONE, FAILED, VALUE = b"H", b"K", b"E", b"S"
#: Controller to worker: close the connections of the collectives. `VALUE` goes both ways.
BREAK = b"B"
#: Controller to worker, what a step does: connect, load a model, run a program.
JOIN, LOAD, EXECUTE = b"J", b"L", b"X"
#: More than any message has but a step's. The other end may be another program's.
_MOST_BYTES = 1 << 24
#: The most that a header can tell of.
ANY_BYTES = (1 << 32) - 1

#: Of a step that is done: when it began and ended, in seconds of the worker's monotonic clock.
TIMES = struct.Struct("<dd")
#: Waits that sleep at once, at most, before one stays awake again.
_MOST_ASLEEP = 64


class Message(NamedTuple):
    """A message: its kind, the number of the call that it is about, and what it carries."""

    kind: bytes
    number: int
    payload: bytes


def pack(kind: bytes, number: int = 0, payload: bytes = b"") -> bytes:
    """Return a message's bytes."""
    return _HEADER.pack(kind, number, len(payload)) + payload


class Waiter:
    """Waits for sockets, awake at first where that has paid lately.

    A core that sleeps wakes in some 50 microseconds, which is more than a message takes. But who
    stays awake keeps another from the core, perhaps the one that is waited for. So a wait that was
    awake in vain is followed by one that sleeps at once, then by twice as many, up to 64.

    Parameters
    ----------
    spin : float
        Seconds to stay awake.
    """

    def __init__(self, spin: float) -> None:
        self._spin = spin
        self._poll = select.poll()
        self._asleep = 0  # waits that sleep at once, from now on
        self._penalty = 1  # and how many there are behind the next that was awake in vain

    def add(self, fd: int) -> None:
        """Wait for data of a socket, too."""
        self._poll.register(fd, select.POLLIN)

    def wait(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        """Return what poll returns, within so many milliseconds behind those awake."""
        if self._asleep > 0:
            self._asleep -= 1
        elif self._spin > 0:
            until = perf_counter() + self._spin
            while perf_counter() < until:
                if found := self._poll.poll(0):
                    self._penalty = 1
                    return found
            self._asleep = self._penalty
            self._penalty = min(2 * self._penalty, _MOST_ASLEEP)
        return self._poll.poll(milliseconds)


class Port:
    """One end of a worker's socket.

    Parameters
    ----------
    end : socket.socket
        The socket.
    most_bytes : int
        A message that claims to be longer ends the connection.
    """

    def __init__(self, end: socket.socket, most_bytes: int = _MOST_BYTES) -> None:
        self.socket = end
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._data = bytearray()

    def fileno(self) -> int:
        """Return what poll takes."""
        return self.socket.fileno()

    def send(self, kind: bytes, number: int = 0, payload: bytes = b"") -> None:
        """Send a message; several threads may.

        Raises
        ------
        OSError
            If the other end is closed.
        """
        with self._lock:
            self.socket.sendall(pack(kind, number, payload))

    def receive(self) -> Iterator[Message]:
        """Wait for data, then yield the messages that are complete.

        Raises
        ------
        EOFError
            If the other end is closed, or sends what is no message.
        """
        self._read()
        while (message := self._take()) is not None:
            yield message

    def receive_one(self) -> Message:
        """Wait for one message.

        Raises
        ------
        EOFError
            As :meth:`receive`.
        TimeoutError
            If the socket has a timeout, and nothing comes for so long.
        """
        while (message := self._take()) is None:
            self._read()
        return message

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError("the other end of a worker's socket is closed")
        self._data += data

    def _take(self) -> Message | None:
        """Take the first message out of the data, if it is complete."""
        if len(self._data) < _HEADER.size:
            return None
        kind, number, length = _HEADER.unpack_from(self._data)
        if length > self._most_bytes:
            raise EOFError(
                f"a message to a worker has at most {self._most_bytes} bytes, not {length}"
            )
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[_HEADER.size : end])
        del self._data[:end]
        return Message(kind, number, payload)

    def end(self) -> None:
        """End the connection, also for processes that have a copy of the socket."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
