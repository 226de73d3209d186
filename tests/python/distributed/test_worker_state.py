"""A worker by itself: what it does and reports."""

from __future__ import annotations

import socket

import pytest

from kvctl.distributed.messages.wire import DONE, FAILED, Port
from kvctl.distributed.worker_state import Worker


@pytest.mark.parametrize("error", [None, ValueError("wrong")])
def test_a_call_that_is_sent_again_is_reported_again(error):
    own, ours = socket.socketpair()
    calls = []

    def act():
        calls.append(1)
        if error is not None:
            raise error

    with own, ours:
        worker = Worker(0, Port(own))
        first = worker.run(1, act)
        assert first.number == 1 and first.kind == (DONE if error is None else FAILED)
        assert worker.run(1, act) == first
        assert calls == [1]
