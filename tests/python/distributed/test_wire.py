"""The messages between workers and the controller."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from kvctl.distributed.messages.wire import VALUE, Message, Port


@pytest.fixture
def ends():
    """A port, and the plain socket that is its other end."""
    port, other = socket.socketpair()
    with port, other:
        yield Port(port), other


def packed(number, payload):
    """Return a message's bytes."""
    sender, receiver = socket.socketpair()
    with sender, receiver:
        Port(sender).send(VALUE, number, payload)
        return receiver.recv(1 << 16)


def test_one_message_in_pieces(ends):
    port, other = ends
    data = packed(3, b"two pieces")
    other.sendall(data[:9])
    rest = threading.Timer(0.05, other.sendall, [data[9:]])
    rest.start()
    assert port.receive_one() == Message(VALUE, 3, b"two pieces")
    rest.join()


def test_one_message_leaves_the_next(ends):
    port, other = ends
    other.sendall(packed(1, b"first") + packed(2, b"second"))
    assert port.receive_one().payload == b"first"
    assert port.receive_one().payload == b"second"


def test_messages_that_are_complete(ends):
    port, other = ends
    data = packed(1, b"first") + packed(2, b"second")
    other.sendall(data[:-1])
    assert [message.number for message in port.receive()] == [1]
    other.sendall(data[-1:])
    assert [message.number for message in port.receive()] == [2]


@pytest.mark.parametrize("way", ["receive", "receive_one"])
def test_what_is_no_message_is_not_collected(ends, way):
    port, other = ends
    other.sendall(struct.pack("<cqI", b"G", 0, 0xFFFFFFFF))
    with pytest.raises(EOFError, match="at most"):
        list(getattr(port, way)() or ())


def test_a_closed_end(ends):
    port, other = ends
    other.close()
    with pytest.raises(EOFError, match="closed"):
        port.receive_one()
