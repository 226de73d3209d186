"""Workers of a sharded model in threads of this process, and collectives between them in Python."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import tvm_ffi

import kvctl

_NAMES = ("allreduce", "allgather", "gather_to_worker0", "broadcast_from_worker0")


class Shards:
    """The runners of all workers of one model directory."""

    def __init__(self, workers):
        self._barrier = threading.Barrier(workers, timeout=60)
        self._rank = threading.local()
        self._parts = [None] * workers
        self._threads = [ThreadPoolExecutor(1) for _ in range(workers)]
        self.collectives = 0

    def on_all(self, function):
        """Return what ``function(rank)`` gives in every worker's thread; raises what one raises."""
        self._barrier.reset()

        def act(rank):
            self._rank.value = rank
            try:
                return function(rank)
            except BaseException:
                self._barrier.abort()
                raise

        futures = [one.submit(act, rank) for rank, one in enumerate(self._threads)]
        errors = [one.exception() for one in futures]
        told = [one for one in errors if one is not None and "BrokenBarrier" not in repr(one)]
        if told:
            raise told[0]
        return [one.result() for one in futures]

    def load(self, directory, **options):
        """Load every worker's share."""
        self.runners = self.on_all(
            lambda rank: kvctl.ModelRunner.load(directory, shard=rank, **options)
        )
        return self

    def add_sequence(self, seq_id):
        """Add a sequence to every worker's cache."""
        self.on_all(lambda rank: self.runners[rank].cache.add_sequence(seq_id))

    def commit(self, seq_ids, kept):
        """Commit on every worker."""
        self.on_all(lambda rank: self.runners[rank].cache.commit(seq_ids, kept))

    def call(self, method, *args, **kwargs):
        """Return what a method of the runner gives on worker 0, after all workers called it."""
        return self.every(method, *args, **kwargs)[0]

    def every(self, method, *args, **kwargs):
        """Return what a method of the runner gives on each worker."""
        return self.on_all(lambda rank: getattr(self.runners[rank], method)(*args, **kwargs))

    def _exchange(self, part):
        """Return what every worker brought, and keep it until all have read it."""
        self._parts[self._rank.value] = part
        self._barrier.wait()
        found = [None if one is None else np.copy(one) for one in self._parts]
        self._barrier.wait()
        return found

    def allreduce(self, send, kind, in_group, recv):
        """Sum in the order of workers, or take the largest."""
        assert in_group
        parts = self._exchange(np.from_dlpack(send))
        reduce = {(0,): lambda a, b: a + b, (3,): np.maximum}[tuple(kind)]
        np.from_dlpack(recv)[:] = functools.reduce(reduce, parts)
        self.collectives += self._rank.value == 0

    def allgather(self, send, in_group, recv):
        """Put what all workers have behind each other on each of them."""
        assert in_group
        parts = self._exchange(np.from_dlpack(send))
        np.from_dlpack(recv).reshape(-1)[:] = np.concatenate([part.reshape(-1) for part in parts])
        self.collectives += self._rank.value == 0

    def gather_to_worker0(self, send, in_group, recv):
        """Put what all workers have behind each other on the first one."""
        assert in_group
        assert (recv is not None) == (self._rank.value == 0)
        parts = self._exchange(np.from_dlpack(send))
        if recv is not None:
            np.from_dlpack(recv)[:] = np.stack(parts)

    def broadcast_from_worker0(self, send, in_group, recv):
        """Give all what the first one has."""
        np.from_dlpack(recv)[:] = self._exchange(np.from_dlpack(send))[0]

    def close(self):
        """End the threads."""
        for one in self._threads:
            one.shutdown()


@contextmanager
def shards(workers):
    """Give workers whose collectives stand for those of TVM's Disco meanwhile."""
    group = Shards(workers)
    names = [f"runtime.disco.{name}" for name in _NAMES]
    before = [tvm_ffi.get_global_func(name, allow_missing=True) for name in names]
    for name, full in zip(_NAMES, names, strict=True):
        tvm_ffi.register_global_func(full, getattr(group, name), override=True)
    try:
        yield group
    finally:
        group.close()
        for full, function in zip(names, before, strict=True):
            if function is None:
                tvm_ffi.registry.remove_global_func(full)
            else:
                tvm_ffi.register_global_func(full, function, override=True)
