"""The messages by which workers report to the controller, beside Disco's own channel.

Disco's replies come one worker after another and block for ever behind a dead one. Here every
worker has a socket of its own, which the controller polls, and which ends when the worker does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

_HEADER = struct.Struct("<cqI")

#: Worker to controller: it lives; a call is done; a call failed; a value for the others.
ALIVE, DONE, FAILED, VALUE = b"H", b"K", b"E", b"S"
#: Controller to worker: close the connections of the collectives. `VALUE` goes both ways.
BREAK = b"B"
#: More than any message has. The other end may be another program's.
_MOST_BYTES = 1 << 24


class Message(NamedTuple):
    """A message: its kind, the number of the call that it is about, and what it carries."""

    kind: bytes
    number: int
    payload: bytes


class Port:
    """One end of a worker's socket."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
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
            self.socket.sendall(_HEADER.pack(kind, number, len(payload)) + payload)

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
        if length > _MOST_BYTES:
            raise EOFError(f"a message to a worker has at most {_MOST_BYTES} bytes, not {length}")
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[_HEADER.size : end])
        del self._data[:end]
        return Message(kind, number, payload)

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
