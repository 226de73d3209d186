"""Random operations on a cache of the emulated device, compared with the host after each."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import poison, put
from kvctl import Mask, PagedKVCache
from kvctl.cuda import read_uploads

HEADS, DIM, CHUNK = 1, 64, 24


def make_cache(max_total_tokens=640, **changes):
    options = {"page_size": 4, "max_sequences": 16, "prefill_chunk_size": CHUNK} | changes
    return PagedKVCache.create(
        num_layers=1,
        num_qo_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM,
        max_total_tokens=max_total_tokens,
        dtype="float16",
        device="cuda",
        rope=kvctl.Rope(),
        **options,
    )


def fail_call(number):
    tvm_ffi.get_global_func("emulate.fail_call")(number)


class Program:
    """Random operations on one cache; after each, the device is compared with the host."""

    def __init__(self, seed, directory):
        self.rng = np.random.default_rng(seed)
        self.cache = make_cache()
        self.directory = directory
        self.lengths = {}
        self.points = {}
        self.graph = None
        self.qkv = put(self.rng.standard_normal((CHUNK, 3 * HEADS, DIM)), "cuda", "float16")
        self.rows = [
            put(np.ones((n, 3 * HEADS, DIM)), "cuda", "float16") for n in range(1, CHUNK + 1)
        ]
        self.done = dict.fromkeys(self.operations(), 0)
        self.sent = []
        for seq_id in range(3):
            self.cache.add_sequence(seq_id)
            self.lengths[seq_id] = 0

    @staticmethod
    def operations():
        return [name[3:] for name in dir(Program) if name.startswith("do_")]

    def pick(self, least=0):
        """Return a sequence of at least so many tokens, or None."""
        fit = [seq_id for seq_id, length in self.lengths.items() if length >= least]
        return int(self.rng.choice(fit)) if fit else None

    def free_id(self):
        return next(i for i in range(100) if i not in self.lengths)

    def check(self):
        found = read_uploads(self.cache)
        assert found.num_different == 0
        return found

    def attend(self, total):
        self.cache.attention(0, self.rows[total - 1])

    def run(self, count):
        # Steps more often than the others: only they send something.
        names = [*self.done, *["append"] * 6, *["fail"] * 3, *["replay"] * 3]
        for _ in range(count):
            name = str(self.rng.choice(names))
            with suppress(kvctl.OutOfPagesError):
                if getattr(self, "do_" + name)() is not False:
                    self.done[name] += 1
            self.check()
            if self.cache.num_available_pages < 30:
                self.do_remove()

    def step(self, seq_ids, lengths, run, **options):
        self.cache.begin_forward(seq_ids, lengths, **options)
        self.sent.append(self.check().num_bytes)
        run(sum(lengths))
        self.check()
        self.cache.end_forward()

    def batch(self):
        count = self.rng.integers(1, len(self.lengths) + 1)
        chosen = [int(s) for s in self.rng.permutation(list(self.lengths))[:count]]
        most = CHUNK // len(chosen)
        return chosen, [int(n) for n in self.rng.integers(1, most + 1, len(chosen))]

    def do_append(self):
        if not self.lengths:
            return self.do_add()
        seq_ids, lengths = self.batch()
        self.step(seq_ids, lengths, self.attend)
        for seq_id, length in zip(seq_ids, lengths, strict=True):
            self.lengths[seq_id] += length
        return None

    def do_tree(self):
        seq_id = self.pick()
        if seq_id is None:
            return False
        self.step([seq_id], [5], self.attend, mask=Mask.tree([-1, 0, 0, 1, 2]))
        if self.rng.random() < 0.3:
            self.cache.abort([seq_id])
        else:
            kept = [[0], [0, 2, 4], [0, 1]][self.rng.integers(3)]
            self.cache.commit([seq_id], [kept])
            self.lengths[seq_id] += len(kept)
        return None

    def do_abort(self):
        seq_ids, lengths = self.batch() if self.lengths else ([], [])
        if not seq_ids:
            return False
        self.cache.begin_forward(seq_ids, lengths)
        self.check()
        self.cache.abort()
        return None

    def do_replay(self):
        """Attention of two new tokens, recorded once and replayed in other steps."""
        seq_id = self.pick()
        if seq_id is None:
            return False

        def record(_):
            out = poison((2, HEADS, DIM), "cuda", "float16")
            tvm_ffi.get_global_func("emulate.begin_capture")()
            try:
                self.cache.attention(0, self.rows[1], out)
            finally:
                self.graph = tvm_ffi.get_global_func("emulate.end_capture")()
            self.kept = out
            replay(_)

        def replay(_):
            tvm_ffi.get_global_func("emulate.replay")(self.graph)
            assert np.isfinite(self.kept.numpy()).all()
            if self.cache.in_forward and self.rng.random() < 0.5:
                self.attend(2)

        self.cache.begin_forward([seq_id], [2])
        self.check()
        (record if self.graph is None else replay)(2)
        self.check()
        self.attend(2)  # the cache does not see a replay
        self.cache.end_forward()
        self.lengths[seq_id] += 2
        return None

    def do_fail(self):
        """A call to CUDA fails in the middle of begin_forward."""
        if not self.lengths:
            return False
        seq_ids, lengths = self.batch()
        fail_call(int(self.rng.integers(1, 5)))
        try:
            self.cache.begin_forward(seq_ids, lengths)
        except RuntimeError as error:
            if isinstance(error, kvctl.OutOfPagesError):
                raise
            assert "CUDA" in str(error)
        else:
            return False
        finally:
            fail_call(0)
            if self.cache.in_forward:
                self.cache.abort()
        assert {s: self.cache.sequence_length(s) for s in self.lengths} == self.lengths
        return None

    def do_refuse(self):
        """What the host refuses sends nothing."""
        seq_id = self.pick()
        if seq_id is None:
            return False
        with pytest.raises(ValueError):
            self.cache.begin_forward([seq_id], [CHUNK + 1])
        with pytest.raises(kvctl.OutOfPagesError):
            for name in [self.free_id() + i for i in range(9)]:
                self.cache.add_sequence(name)
                self.lengths[name] = 0
                while True:
                    self.step([name], [CHUNK], self.attend)
                    self.lengths[name] += CHUNK
        for name in [s for s, length in self.lengths.items() if length > 100]:
            self.cache.remove_sequence(name)
            del self.lengths[name]
        return None

    def do_popn(self):
        seq_id = self.pick(1)
        if seq_id is None:
            return False
        n = int(self.rng.integers(1, self.lengths[seq_id] + 1))
        self.cache.popn(seq_id, n)
        self.lengths[seq_id] -= n
        return None

    def do_checkpoint(self):
        seq_id = self.pick(1)
        if seq_id is None:
            return False
        self.points[seq_id] = (self.cache.checkpoint(seq_id), self.lengths[seq_id])
        return None

    def do_rollback(self):
        known = [seq_id for seq_id in self.points if seq_id in self.lengths]
        if not known:
            return False
        seq_id = int(self.rng.choice(known))
        point, length = self.points[seq_id]
        self.cache.rollback(seq_id, point)
        self.lengths[seq_id] = length
        return None

    def do_fork(self):
        parent = self.pick(1)
        if parent is None or len(self.lengths) > 8:
            return False
        child = self.free_id()
        length = int(self.rng.integers(1, self.lengths[parent] + 1))
        self.cache.fork_sequence(parent, child, length)
        self.lengths[child] = length
        return None

    def do_evict(self):
        seq_id = self.pick(8)
        if seq_id is None:
            return False
        length = self.lengths[seq_id]
        keep = np.flatnonzero(self.rng.random(length) < 0.6)
        self.cache.evict(seq_id, keep, rerotate=bool(self.rng.random() < 0.5))
        self.lengths[seq_id] = len(keep)
        return None

    def do_window(self):
        seq_id = self.free_id()
        self.cache.add_sequence(seq_id)
        self.lengths[seq_id] = 0
        self.cache.enable_sliding_window(seq_id, 9, sinks=2)
        for _ in range(2):
            self.step([seq_id], [20], self.attend)
            self.lengths[seq_id] += 20
        self.cache.remove_sequence(seq_id)
        del self.lengths[seq_id]

    def do_add(self):
        if len(self.lengths) > 8:
            return False
        seq_id = self.free_id()
        self.cache.add_sequence(seq_id)
        self.lengths[seq_id] = 0
        return None

    def do_remove(self):
        seq_id = self.pick()
        if seq_id is None:
            return False
        self.points.pop(seq_id, None)
        self.cache.remove_sequence(seq_id)
        del self.lengths[seq_id]
        return None

    def do_save(self):
        seq_id = self.pick(1)
        if seq_id is None:
            return False
        path = self.directory / "saved"
        self.cache.save_sequence(seq_id, path)
        self.points.pop(seq_id, None)
        self.cache.remove_sequence(seq_id)
        self.cache.load_sequence(seq_id, path)
        return None

    def do_poison(self):
        self.cache.debug_poison()
