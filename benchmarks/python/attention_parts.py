"""What bench_attention.py measures besides torch: token trees, shared prefixes, observers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

SHAPES = [(9, 3, 64), (32, 8, 128)]  # query heads, KV heads, head_dim
TREES = [8, 64]  # new tokens, as TVM's tree kernels take them
TREE_KV_LEN = 2048
FORKS, PREFIX = 8, 8192
SECONDS = 0.03  # how long each turn repeats its call


def time_calls(call: Callable[[], Any]) -> list[float]:
    """Time a function repeatedly for SECONDS, after one call that does not count."""
    call()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return times


def summary(times: list[float]) -> list[float]:
    """Return the least and the median of some times."""
    return [min(times), median(times)]


def tree_parents(new: int) -> list[int]:
    """Return the parents of a binary tree."""
    return [(node + 1) // 2 - 1 for node in range(new)]


def measure_trees(rounds: int, *, tvm: bool) -> list[dict[str, Any]]:
    """Measure attention of token trees in kvctl's cache or in TVM's, in this process."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "python" / "support" / "cache"))
    from builtin_cache import Config, _tensor, kvctl_cache, tvm_cache

    rows = []
    for qo, kv, dim in SHAPES:
        config = Config(
            num_layers=1,
            num_qo_heads=qo,
            num_kv_heads=kv,
            head_dim=dim,
            max_total_tokens=TREE_KV_LEN + 64,
            prefill_chunk_size=TREE_KV_LEN,
        )
        for new in TREES:
            cache = (tvm_cache if tvm else kvctl_cache)(config)
            cache.add(0)
            rng = np.random.default_rng(0)
            cache.begin([0], [TREE_KV_LEN - new])
            if not tvm:  # filling TVM's takes minutes, and zeros cost it as much
                past = (TREE_KV_LEN - new, qo + 2 * kv, dim)
                cache.attention(0, rng.standard_normal(past).astype(np.float32))
            cache.end()
            cache.begin([0], [new], tree_parents(new))
            qkv = _tensor(rng.standard_normal((new, qo + 2 * kv, dim)).astype(np.float32))
            out = _tensor(np.zeros((new, qo, dim), np.float32))
            name = "attention_kv_cache_attention_with_fused_qkv"
            call = partial(cache._call, name, 0, dim**-0.5, qkv, out)
            times = [t for _ in range(rounds) for t in time_calls(call)]
            rows.append({"shape": (qo, kv, dim), "new": new, "time": summary(times)})
    return rows


def measure_shared(rounds: int) -> list[dict[str, Any]]:
    """Measure one new token of forks and of sequences that share nothing, in turns."""
    import kvctl
    from kvctl._ffi.convert import to_tensor

    rows = []
    for qo, kv, dim in SHAPES:
        calls = []
        rng = np.random.default_rng(0)
        past = rng.standard_normal((PREFIX, qo + 2 * kv, dim), np.float32)
        new = to_tensor(past[:FORKS].copy())
        for forks in (True, False):
            cache = kvctl.PagedKVCache.create(
                num_layers=1,
                num_qo_heads=qo,
                num_kv_heads=kv,
                head_dim=dim,
                max_total_tokens=PREFIX * (1 if forks else FORKS) + 16 * FORKS,
                prefill_chunk_size=PREFIX,
            )
            for seq_id in range(FORKS):
                if forks and seq_id > 0:
                    cache.fork_sequence(0, seq_id)
                    continue
                cache.add_sequence(seq_id)
                with cache.forward([seq_id], [PREFIX], mask=kvctl.Mask.window(1)):
                    cache.attention(0, past)
            cache.begin_forward(list(range(FORKS)), [1] * FORKS)
            calls.append(partial(cache.attention, 0, new, cache.attention(0, new)))
        turns: list[list[float]] = [[], []]
        for _ in range(rounds):
            for call, times in zip(calls, turns, strict=True):
                sleep(0.01)
                times += time_calls(call)
        rows.append(
            {"shape": (qo, kv, dim), "forks": summary(turns[0]), "separate": summary(turns[1])}
        )
    return rows


def measure_observer(rounds: int) -> list[dict[str, Any]]:
    """Measure attention with and without sums for each token, in turns."""
    import kvctl
    from kvctl._ffi.convert import to_tensor

    rows = []
    for qo, kv, dim in SHAPES:
        for new in (1, 64):
            cache = kvctl.PagedKVCache.create(
                num_layers=1,
                num_qo_heads=qo,
                num_kv_heads=kv,
                head_dim=dim,
                max_total_tokens=TREE_KV_LEN,
                prefill_chunk_size=TREE_KV_LEN,
            )
            cache.add_sequence(0)
            rng = np.random.default_rng(0)
            qkv = rng.standard_normal((TREE_KV_LEN, qo + 2 * kv, dim), np.float32)
            with cache.forward([0], [TREE_KV_LEN - new], mask=kvctl.Mask.window(1)):
                cache.attention(0, qkv[new:])
            cache.begin_forward([0], [new])
            rows_in = to_tensor(qkv[:new].copy())
            out = cache.attention(0, rows_in)
            mass = to_tensor(np.zeros((TREE_KV_LEN, kv), np.float32))
            calls = [
                partial(cache.attention, 0, rows_in, out),
                partial(cache.attention, 0, rows_in, out, mass=mass),
            ]
            turns: list[list[float]] = [[], []]
            for _ in range(rounds):
                for call, times in zip(calls, turns, strict=True):
                    times += time_calls(call)
            rows.append(
                {
                    "shape": (qo, kv, dim),
                    "new": new,
                    "plain": summary(turns[0]),
                    "observed": summary(turns[1]),
                }
            )
    return rows
