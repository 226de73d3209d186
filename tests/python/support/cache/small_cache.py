"""A small cache over numbered tokens, and its attention in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvctl import PagedKVCache
from kvctl.cache import Rope

LAYERS, QO_HEADS, KV_HEADS, DIM, PAGE = 2, 4, 2, 16, 4


def make_cache(**changes: Any) -> PagedKVCache:
    options: dict[str, Any] = {
        "num_layers": LAYERS,
        "num_qo_heads": QO_HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 160,
        "page_size": PAGE,
        "prefill_chunk_size": 64,
    }
    return PagedKVCache.create(**(options | changes))


def rows(numbers: Any) -> np.ndarray:
    """(layers, tokens, heads, dim): the q, k and v that belong to these tokens."""
    shape = (LAYERS, QO_HEADS + 2 * KV_HEADS, DIM)
    each = [np.random.default_rng(n).standard_normal(shape, dtype=np.float32) for n in numbers]
    return np.stack(each, axis=1)


def step(cache: PagedKVCache, seq_id: int, numbers: Any, **options: Any) -> np.ndarray:
    """Append tokens of the cache's type (float32 where NumPy lacks it); attention of each layer."""
    qkv = rows(numbers).astype("float16" if cache.dtype == "float16" else "float32")
    with cache.forward([seq_id], [len(numbers)], **options):
        return np.stack([np.from_dlpack(cache.attention(i, qkv[i])) for i in range(LAYERS)])


def kv(cache: PagedKVCache, seq_id: int) -> np.ndarray:
    return np.stack([np.from_dlpack(part) for part in cache.get_kv(seq_id)])


def rotated(x: np.ndarray, positions: Any, rope: Rope) -> np.ndarray:
    """x (..., tokens, heads, dim) in float64."""
    half = DIM // 2
    angle = np.asarray(positions)[:, None] * rope.scale * rope.theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    low, high = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(
    numbers: list[int], positions: list[int], new: int, rope: Rope, visible: Any = None
) -> np.ndarray:
    """Attention of the last ``new`` tokens of a sequence whose keys stand at these positions."""
    qkv = rows(numbers)
    q = rotated(qkv[:, -new:, :QO_HEADS], positions[-new:], rope)
    k = rotated(qkv[:, :, QO_HEADS:-KV_HEADS], positions, rope).repeat(2, axis=2)
    v = qkv[:, :, -KV_HEADS:].astype(np.float64).repeat(2, axis=2)
    scores = np.einsum("lqhd,lkhd->lhqk", q, k) * DIM**-0.5
    columns = len(numbers)
    see = np.arange(columns) <= np.arange(columns - new, columns)[:, None]
    if visible is not None:
        see = see & visible
    scores[:, :, ~see] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("lhqk,lkhd->lqhd", weights / weights.sum(axis=-1, keepdims=True), v)
