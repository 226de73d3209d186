"""What goes to a worker and comes back, without workers."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from kvctl.distributed.messages.reports import Reports
from kvctl.distributed.messages.wire import (
    ANY_BYTES,
    DONE,
    EXECUTE,
    FAILED,
    TIMES,
    Message,
    Port,
    Waiter,
    pack,
)
from kvctl.distributed.steps import Steps


class Worker:
    """The other end of worker 1's socket."""

    def __init__(self, patience=8.0):
        ours, theirs = socket.socketpair()
        self.looked = 0
        self.steps = Steps(0.0, self.look_around)
        self.steps.add({1: Port(ours)})
        self.port = Port(theirs, ANY_BYTES)
        self.reports = Reports(1, 2, 0b10, patience)

    def look_around(self, reports):
        self.looked += 1
        reports.check_silence()

    def close(self):
        self.steps.close()
        self.port.end()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def test_a_report_has_its_times(worker):
    worker.port.send(DONE, 1, TIMES.pack(2.0, 3.5))
    worker.steps.collect(worker.reports)
    assert worker.reports.done == {1} and worker.reports.times == {1: (2.0, 3.5)}


def test_a_report_of_another_step_is_not_taken(worker):
    worker.port.send(DONE, 0, TIMES.pack(0.0, 0.0))
    worker.port.send(DONE, 1, TIMES.pack(2.0, 3.5))
    worker.steps.collect(worker.reports)
    assert worker.reports.times == {1: (2.0, 3.5)}


def test_a_message_that_fills_the_socket_arrives_whole(worker):
    message, sent, got = pack(EXECUTE, 1, bytes(range(256)) * 20_000), [], []
    reader = threading.Timer(0.2, lambda: got.append(worker.port.receive_one()))
    reader.start()
    worker.steps.send(1, message, sent, worker.reports)
    reader.join()
    assert pack(*got[0]) == message and sum(sent) == len(message) and len(sent) > 1
    assert worker.reports.lost is None


def test_a_message_goes_on_where_it_was_left(worker):
    message = pack(EXECUTE, 1, b"0123456789")
    worker.steps.send(1, message[:7], sent := [], worker.reports)
    worker.steps.send(1, message, sent, worker.reports)
    worker.steps.send(1, message, sent, worker.reports)
    assert worker.port.receive_one().payload == b"0123456789"
    assert sent == [7, len(message) - 7]


def test_a_worker_that_reads_nothing_is_given_up():
    worker = Worker(patience=0.2)
    message, begun = pack(EXECUTE, 1, bytes(1 << 23)), time.monotonic()
    worker.steps.send(1, message, [], worker.reports)
    worker.close()
    assert worker.reports.lost == (1, "has not answered for 0 s")
    assert worker.looked and time.monotonic() - begun < 5


def test_a_worker_that_has_ended_is_lost(worker):
    worker.port.end()
    worker.steps.collect(worker.reports)
    assert worker.reports.lost == (1, "")


def test_to_send_to_one_that_has_ended_loses_it(worker):
    worker.port.end()
    worker.steps.send(1, pack(EXECUTE, 1), [], worker.reports)
    assert worker.reports.lost == (1, "")


def test_waits_that_were_awake_in_vain_become_rare(monkeypatch):
    slept = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiter = Waiter(1e-3)
        waiter.add(ours.fileno())
        poll = waiter._poll

        class Poll:
            def poll(self, milliseconds):
                if milliseconds:
                    slept.append(awake)
                return poll.poll(0)

        waiter._poll = Poll()
        awake = 0
        clock = time.perf_counter

        def count():
            nonlocal awake
            awake += 1
            return clock()

        monkeypatch.setattr("kvctl.distributed.messages.wire.perf_counter", count)
        for _ in range(8):
            waiter.wait(1)
        turns = [after > before for before, after in zip([0, *slept], slept, strict=False)]
        assert turns == [True, False, True, False, False, True, False, False]
        theirs.send(b"x")
        waiter._asleep = 0
        assert waiter.wait(1) and waiter._penalty == 1


@pytest.mark.parametrize("kind", ["ArithmeticError", "DivergedError"])
def test_a_worker_is_missing_until_its_failure_is_known(kind):
    """Two threads take failures: the one that waits must not go on between the two notes."""
    reports = Reports(1, 2, 0b11, 8.0)
    seen = []

    class Missing(set):
        def discard(self, worker):
            seen.append((dict(reports.failures), reports.broken, reports.lost))
            super().discard(worker)

    reports.missing = Missing(reports.missing)
    report = {"kind": kind, "message": "went wrong", "mistake": False}
    reports.take(1, Message(FAILED, 1, json.dumps(report).encode()))
    ((failures, broken, lost),) = seen
    assert failures[1].kind == kind and broken and (lost is not None) == (kind == "DivergedError")
    reports.take(0, Message(DONE, 1, TIMES.pack(0.0, 1.0)))
    assert reports.done == {0} and not reports.missing
