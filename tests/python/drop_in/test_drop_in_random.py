"""Random programs on TVM's cache and on kvctl's, side by side: the same calls, the same answers.

The programs stay inside what TVM does right. Where TVM is wrong, or undefined, and where kvctl
therefore answers otherwise:

- commits (test_tvm_defects, T1 to T3): of a batch whose last tree is a chain, of other sequences
  than those of the last step or in another order, of trees that were grown; trees that mix forked
  and unforked sequences (T4) or have more than 256 nodes; popn on an uncommitted tree;
- windows: popn after a window has slid (T5) or across a prefix that is shared (T6); forks behind
  the first page of a window that has slid, after which TVM fails to slide it further; chunks that
  reach beyond the window, whose tokens see all that it held when the chunk began, so that what a
  token sees depends on how its prompt was cut (kvctl: always the window); trees;
- inline RoPE: trees; and layers with windows, whose past TVM rotates with a base of 10000 whatever
  the model's is;
- layers with windows: self and cross attention, which TVM takes for MLA; chunks beyond the window;
  chunks after the first, where its CPU kernel reads a maximum that was never written; forks on a
  page boundary, after which a step fails; K and V are not shown;
- prefixes forked more than five deep, and out-of-page errors, which leave TVM's lengths raised;
- attention in parts: what no sequence has a past for is left as it was allocated; a decode step
  before its K and V were appended reads what was in the page;
- ids and lengths that make no sense: internal errors, or none (kvctl: ValueError, KeyError).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest

from builtin_cache import Config, tvm_cache
from cache_pair import FORMS, Pair

# By default short programs for both head dimensions and both types; more and longer on demand.
STEPS = int(os.environ.get("KVCTL_DROP_IN_STEPS", "0"))
MODES = {
    "none": {"rope": "none"},
    "normal": {"rope": "normal"},
    "inline": {"rope": "inline"},
    "windows": {"rope": "normal", "sliding_window": True},
    "windows without rope": {"rope": "none", "sliding_window": True},
    "layer windows": {"rope": "normal", "sliding_layers": (1,)},
}


@dataclass
class Known:
    """What a program has to know of a sequence to stay inside what TVM does right."""

    length: int = 0
    window: int = 0
    forked: bool = False  # it shares a prefix
    slid: bool = False
    chunks: int = 0


class Program:
    """A random program, on both caches."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config = replace(config, max_total_tokens=1024, max_sequences=6)
        self.pair = Pair(self.config)
        self.pair.rng = np.random.default_rng(seed)
        self.random = Random(seed)
        self.known: dict[int, Known] = {}
        self.counts = dict.fromkeys(("add", "fork", "step", "chunk", "tree", "pop", "remove"), 0)

    def run(self, steps: int) -> None:
        actions = [self.add, self.fork, self.decode, self.decode, self.chunk]
        actions += [self.tree, self.pop, self.remove, self.parts]
        for start in (self.add, self.add, self.add, self.chunk, self.decode):
            start()
        for _ in range(steps):
            self.random.choice(actions)()

    def some(self, condition: Callable[[Known], bool] = lambda known: True) -> list[int]:
        """A random selection of sequences, in random order."""
        ids = [i for i, known in self.known.items() if condition(known)]
        return self.random.sample(ids, self.random.randint(min(1, len(ids)), len(ids)))

    def add(self) -> None:
        if len(self.known) == self.config.max_sequences:
            return
        seq_id = self.random.choice([i for i in range(20) if i not in self.known])
        self.pair.both("add", seq_id)
        self.known[seq_id] = Known()
        if self.config.sliding_window and self.random.random() < 0.7:
            window = self.random.randint(4, 40)
            self.known[seq_id].window = window
            self.pair.both("enable_window", seq_id, window, self.random.randrange(window))
        self.counts["add"] += 1

    def fork(self) -> None:
        parents = self.some(lambda known: known.length > 0 and not known.window)
        full = len(self.known) == self.config.max_sequences
        if not parents or full or self.config.sliding_layers:
            return
        parent = self.known[parents[0]]
        if parent.forked and self.random.random() < 0.7:
            return  # not too deep
        child = self.random.choice([i for i in range(20) if i not in self.known])
        position = self.random.choice([-1, self.random.randint(0, parent.length)])
        self.pair.both("fork", parents[0], child, position)
        length = parent.length if position < 0 else position
        self.known[child] = Known(length, forked=True, chunks=1)
        parent.forked = True
        self.counts["fork"] += 1

    def room(self, tokens: int) -> bool:
        """Whether so many tokens fit; both caches must never run out."""
        return self.pair.tvm.free_pages() > tokens // 16 + 2 * len(self.known) + 2

    def grow(self, seq_id: int, n: int) -> None:
        known = self.known[seq_id]
        known.length += n
        known.chunks += 1
        if known.window and known.length > known.window:
            known.length, known.slid = known.window, True

    def decode(self) -> None:
        seq_ids = self.some(lambda known: bool(known.length))
        if not seq_ids or not self.room(len(seq_ids)):
            return
        self.pair.forward(dict.fromkeys(seq_ids, 1))
        for seq_id in seq_ids:
            self.grow(seq_id, 1)
        self.counts["step"] += 1

    def chunk(self) -> None:
        layers = bool(self.config.sliding_layers)
        seq_ids = self.some(lambda known: not (layers and known.chunks) and not known.slid)
        lengths = {}
        for seq_id in seq_ids:
            known = self.known[seq_id]
            limit = known.window - known.length if known.window else 40
            limit = min(limit, self.config.layer_sliding_window if layers else limit)
            if limit > 0:
                lengths[seq_id] = self.random.randint(1, min(limit, 40))
        if not lengths or not self.room(sum(lengths.values())):
            return
        self.pair.forward(lengths)
        for seq_id, n in lengths.items():
            self.grow(seq_id, n)
        self.counts["chunk"] += 1

    def tree(self) -> None:
        """A tree, and no chain, for each of some unforked sequences, committed in their order."""
        if self.config.rope == "inline" or self.config.sliding_window or self.config.sliding_layers:
            return
        seq_ids = self.some(lambda known: not known.forked and bool(known.length))
        if not seq_ids or not self.room(8 * len(seq_ids)):
            return
        trees = [[-1, 0, 0] for _ in seq_ids]
        for parents in trees:
            parents += [self.random.randrange(-1, len(parents)) for _ in range(5)]
        self.pair.forward({seq_id: len(t) for seq_id, t in zip(seq_ids, trees, strict=True)}, trees)
        leaves = [self.random.randrange(-1, len(parents)) for parents in trees]
        self.pair.both("commit", seq_ids, leaves)
        for seq_id, parents, leaf in zip(seq_ids, trees, leaves, strict=True):
            while leaf >= 0:
                self.known[seq_id].length += 1
                leaf = parents[leaf]
        self.pair.look(*seq_ids)
        self.counts["tree"] += 1

    def pop(self) -> None:
        seq_ids = self.some(lambda known: not known.slid and not (known.window and known.forked))
        for seq_id in seq_ids[:1]:
            n = self.random.randint(0, self.known[seq_id].length)
            self.pair.both("popn", seq_id, n)
            self.known[seq_id].length -= n
            self.counts["pop"] += 1
            self.pair.look(seq_id)

    def remove(self) -> None:
        if len(self.known) < 3:
            return
        for seq_id in self.some()[:1]:
            self.pair.both("remove", seq_id)
            del self.known[seq_id]
            self.counts["remove"] += 1

    def parts(self) -> None:
        """A chunk whose layers attend in parts, then once more in one call."""
        if self.config.sliding_layers or self.config.sliding_window:
            return
        seq_ids = self.some(lambda known: known.length > 1)
        if not seq_ids or not self.room(6 * len(seq_ids)):
            return
        lengths = [self.random.randint(2, 6) for _ in seq_ids]
        self.pair.both("begin", seq_ids, lengths)
        heads = self.config.num_qo_heads
        for layer in range(self.config.num_layers):
            qkv = self.pair.qkv(sum(lengths))[layer]
            q, k, v = qkv[:, :heads], qkv[:, heads : heads + 2], qkv[:, heads + 2 :]
            inside = self.pair.both("self_attention", layer, q, k, v)
            before = self.pair.both("cross_attention", layer, q)
            self.pair.both("merge", *inside, *before)
            self.pair.both("attention", layer, qkv)
            self.pair.both("shared_kv", layer, q, k, v)
        self.pair.both("end")
        for seq_id, n in zip(seq_ids, lengths, strict=True):
            self.grow(seq_id, n)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS if STEPS else FORMS[::3])
def test_random_programs(form: Config, mode: str) -> None:
    program = Program(replace(form, rope_theta=500.0, **MODES[mode]), seed=sum(map(ord, mode)))
    program.run(STEPS or 20)
    assert program.counts["step"] and program.counts["chunk"]


def test_peer_other_data_is_noticed() -> None:
    """The negative control: a single token that differs, and the caches are told apart."""
    program = Program(Config(), seed=3)
    program.pair.other = tvm_cache(program.config)
    program.run(30)
    seq_id = next(i for i, known in program.known.items() if known.length)
    program.pair.tvm.forward([seq_id], [program.pair.qkv(1)])
    program.pair.other.forward([seq_id], [program.pair.qkv(1)])
    with pytest.raises(AssertionError):
        program.pair.look(seq_id)
