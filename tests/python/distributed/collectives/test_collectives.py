"""Disco's collectives over Gloo, between threads: the same functions as between processes."""

from __future__ import annotations

import threading
import time

import pytest
import tvm_ffi
from tvm_ffi import get_global_func

from collectives_conformance import SUM, CollectivesConformance, Workers, numbers, on_workers


@pytest.fixture(scope="module")
def four(gloo):
    return Workers("gloo", 4, groups=2)


class TestGloo(CollectivesConformance):
    pass


def test_a_wait_ends_when_the_connections_are_closed(gloo):
    """By another thread, as the session does it when a worker has died or is stopped."""
    values = {}

    def exchange(key, value):
        if value is not None:
            values[key] = bytes(value)
            return None
        while key not in values:
            time.sleep(0.001)
        return values[key]

    def wait(rank, one):
        join = get_global_func("runtime.disco.gloo.join")
        close = join(tvm_ffi.convert(exchange), "meeting", "127.0.0.1", 60_000, 0)
        if rank == 0:  # the other one never comes
            threading.Timer(0.1, close).start()
            get_global_func("runtime.disco.gloo.allreduce")(one, SUM, False, one)

    workers = Workers("gloo", 2)
    begun = time.monotonic()
    error, fine = on_workers(workers, workers.tensor(numbers(2, 1000)), wait)
    assert fine is None and isinstance(error, RuntimeError) and "gloo" in str(error)
    assert time.monotonic() - begun < 30
