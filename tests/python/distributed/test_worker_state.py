"""A worker by itself: what it does and reports."""

from __future__ import annotations

import socket

import pytest

from kvctl.distributed.wire import DONE, FAILED, Port
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
        worker, controller = Worker(0, Port(own)), Port(ours)
        ours.settimeout(10)
        worker.run(1, act)
        assert worker.has_ended(1) and not worker.has_ended(2)
        first = controller.receive_one()
        assert first.kind == (DONE if error is None else FAILED)
        worker.run(1, act)
        assert controller.receive_one() == first
        assert calls == [1]
