"""Inline RoPE: attention is that of the normal mode to the last bit, keys are those of no RoPE."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

import kvctl
from kvctl.cache import Rope

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2


class Three:
    """A cache of each mode; every operation goes to all of them."""

    def __init__(self, dtype: str = "float32", **options: Any) -> None:
        self.plain, self.normal, self.inline = (
            kvctl.PagedKVCache.create(
                num_layers=LAYERS,
                num_qo_heads=HEADS,
                num_kv_heads=KV_HEADS,
                head_dim=HEAD_DIM,
                max_total_tokens=512,
                page_size=4,
                prefill_chunk_size=32,
                dtype=dtype,
                rope=rope,
                **options,
            )
            for rope in (None, Rope(), Rope(inline=True))
        )
        self.dtype = dtype
        self.rng = np.random.default_rng(11)

    def all(self, method: str, *args: Any, **options: Any) -> list[Any]:
        caches = (self.plain, self.normal, self.inline)
        return [getattr(cache, method)(*args, **options) for cache in caches]

    def forward(self, seq_ids: list[int], lengths: list[int], **options: Any) -> None:
        self.all("begin_forward", seq_ids, lengths, **options)
        shape = (sum(lengths), HEADS + 2 * KV_HEADS, HEAD_DIM)
        for layer in range(LAYERS):
            qkv = self.rng.standard_normal(shape, dtype=np.float32).astype(self.dtype)
            plain, normal, inline = map(np.from_dlpack, self.all("attention", layer, qkv))
            np.testing.assert_array_equal(inline, normal)
            if len(plain) > 8:
                assert np.abs(plain - normal).max() > 0.01  # rotation does something
        self.all("end_forward")
        self.check()

    def check(self) -> None:
        self.all("debug_poison")
        for seq_id in self.plain.sequence_ids:
            length = self.plain.sequence_length(seq_id)
            first = max(0, length - 8)  # what no window has let go
            plain, normal, inline = self.all("get_kv", seq_id, first, length)
            for got, expected in zip(inline, plain, strict=True):
                np.testing.assert_array_equal(np.from_dlpack(got), np.from_dlpack(expected))
            np.testing.assert_array_equal(np.from_dlpack(inline[1]), np.from_dlpack(normal[1]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("windows", [(), (0, 6)], ids=["", "layer windows"])
def test_trees_popn_forks_and_windows(windows: tuple[int, ...], dtype: str) -> None:
    three = Three(dtype, layer_windows=windows)
    three.all("add_sequence", 0)
    three.forward([0], [21])
    three.all("fork_sequence", 0, 1, 18)
    three.all("enable_sliding_window", 1, 9, sinks=2, horizon=8)
    three.forward([1, 0], [3, 6], mask=[None, kvctl.TokenTree([1] * 6, [-1, 0, 0, 1, 2, 2])])
    three.all("fork_sequence", 0, 2)  # pending nodes too
    three.forward([0, 2], [1, 2], mask=[kvctl.Mask.tree([4]), kvctl.Mask.tree([3, 6])])
    three.all("commit", [2, 0], [[0, 1, 3, 6], [0, 2, 4, 6]])
    three.check()
    three.all("popn", 1, 5)
    three.forward([1, 2, 0], [2, 1, 1])
    checkpoints = three.all("checkpoint", 2)
    three.forward([2], [9])
    three.all("popn", 2, 11)
    three.forward([2], [4])
    caches = (three.plain, three.normal, three.inline)
    for cache, checkpoint in zip(caches, checkpoints, strict=True):
        cache.rollback(2, checkpoint)
    three.check()
    three.forward([0, 1, 2], [1, 1, 1])
    three.forward([0], [3], positions=[40, 41, 42])
    three.forward([0], [1])


def test_many_random_steps() -> None:
    three, random = Three(), Random(4)
    three.all("add_sequence", 0)
    three.forward([0], [5])
    for seq_id in range(1, 5):
        three.all("fork_sequence", 0, seq_id, random.randrange(5))
    for _ in range(30):
        seq_ids = random.sample(range(5), random.randint(1, 3))
        lengths = [random.randint(1, 5) for _ in seq_ids]
        if random.random() < 0.5:
            three.forward(seq_ids, lengths)
        else:
            trees = [[random.randrange(-1, i) for i in range(n)] for n in lengths]
            three.forward(seq_ids, lengths, mask=[kvctl.Mask.tree(parents) for parents in trees])
            kept = [random.choice([[], [trees[i].index(-1)]]) for i in range(len(seq_ids))]
            three.all("commit", seq_ids, kept)
        victim = random.choice(seq_ids)
        three.all("popn", victim, random.randint(0, min(4, three.plain.sequence_length(victim))))
    three.check()
