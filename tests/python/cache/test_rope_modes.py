"""Inline RoPE: attention is that of the normal mode to the last bit, keys are those of no RoPE."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

import kvctl
from kvctl.cache.paged_kv_cache import Rope

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
            first = max(0, length - 8)  # what no window has evicted
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


@pytest.mark.parametrize("inline", [False, True], ids=["normal", "inline"])
def test_renumbered_sinks_against_a_reference(inline: bool) -> None:
    """Chunks, trees, popn: each token is as if its sinks lay just before its window."""
    size, sinks, theta = 6, 3, 100.0
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_total_tokens=256,
        page_size=4,
        rope=Rope(theta=theta, inline=inline),
    )
    for seq_id in (0, 1):
        cache.add_sequence(seq_id)
    cache.enable_sliding_window(0, size, sinks=sinks, renumber_sinks=True)
    rng = np.random.default_rng(2)
    tokens = {seq_id: np.zeros((0, HEADS + 2 * KV_HEADS, HEAD_DIM)) for seq_id in (0, 1)}

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        half = HEAD_DIM // 2
        angles = position * theta ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
        )

    def expected(path: np.ndarray, windowed: bool) -> np.ndarray:
        """Attention of the last of these tokens to all of them."""
        p = len(path) - 1
        past = size + sinks - 1
        places = {c: p - c for c in range(p + 1)}  # column to distance
        if windowed:
            places = {
                c: (p if p <= past else past) - c if c < sinks and p - c >= size else p - c
                for c in places
                if c < sinks or p - c < size
            }
        out = []
        for head in range(HEADS):
            kv = HEADS + head // (HEADS // KV_HEADS)
            # Only distances matter: the token at 0, the column that far before it.
            keys = np.array([rotate(path[c, kv], -distance) for c, distance in places.items()])
            scores = keys @ path[-1, head] * HEAD_DIM**-0.5
            weights = np.exp(scores - scores.max())
            out.append(weights / weights.sum() @ path[list(places), kv + KV_HEADS])
        return np.array(out)

    def step(lengths: dict[int, int], parents: list[int] | None = None) -> None:
        """Append to several sequences, or a tree to one, and compare."""
        shape = (sum(lengths.values()), HEADS + 2 * KV_HEADS, HEAD_DIM)
        new = rng.standard_normal(shape, dtype=np.float32)
        mask = None if parents is None else kvctl.Mask.tree(parents)
        cache.begin_forward(list(lengths), list(lengths.values()), mask=mask)
        got = np.from_dlpack(cache.attention(0, new))
        cache.end_forward()
        cache.debug_poison()
        row = 0
        for seq_id, length in lengths.items():
            for i in range(length):
                path = list(range(row, row + i + 1))
                if parents is not None:
                    path = [i]
                    while parents[path[0]] >= 0:
                        path.insert(0, parents[path[0]])
                see = np.concatenate([tokens[seq_id], new[path]])
                reference = expected(see, seq_id == 0)
                np.testing.assert_allclose(got[row + i], reference, atol=2e-5)
            if parents is None:
                tokens[seq_id] = np.concatenate([tokens[seq_id], new[row : row + length]])
            row += length
        if parents is not None:
            kept = [len(parents) - 1]
            while parents[kept[0]] >= 0:
                kept.insert(0, parents[kept[0]])
            (seq_id,) = lengths
            cache.commit([seq_id], [kept])
            tokens[seq_id] = np.concatenate([tokens[seq_id], new[kept]])

    step({0: 5, 1: 4})
    step({1: 3, 0: 7})  # from before the window is full to behind
    step({0: 1})
    step({0: 6}, [-1, 0, 0, 1, 3, 2])
    step({0: 2, 1: 1})
    cache.popn(0, 9)
    tokens[0] = tokens[0][:-9]
    step({0: 1, 1: 2})
    for _ in range(20):
        step({0: 1})


def test_renumbered_sinks_do_not_depend_on_the_batch() -> None:
    """A token's attention is the same to the last bit alone, in a chunk and beside others."""
    outputs = []
    for lengths in ([1] * 30, [30], [7, 2, 21]):
        cache = Three("float16").inline
        cache.add_sequence(0)
        cache.add_sequence(1)
        cache.enable_sliding_window(0, 6, sinks=3, renumber_sinks=True)
        rng = np.random.default_rng(8)
        qkv = rng.standard_normal((30, HEADS + 2 * KV_HEADS, HEAD_DIM)).astype(np.float16)
        rows, at = [], 0
        for length in lengths:
            cache.begin_forward([1, 0], [1, length])
            batch = np.concatenate([qkv[:1], qkv[at : at + length]])
            for layer in range(cache.num_layers):
                out = np.from_dlpack(cache.attention(layer, batch))
            rows.append(out[1:].copy())
            cache.end_forward()
            at += length
        outputs.append(np.concatenate(rows))
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])
