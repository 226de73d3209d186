"""Caches that rotate with a function of the model library, as those of compiled models do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm_ffi

import kvctl
from kvctl._ffi.convert import to_tensor

MODES = {"none": 0, "normal": 1, "inline": 2}


def library_cache(
    rotate: Any,
    *,
    num_layers: int,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_total_tokens: int,
    page_size: int,
    prefill_chunk_size: int,
    dtype: str = "float32",
    rope: str = "normal",
    factors: np.ndarray | None = None,
) -> kvctl.PagedKVCache:
    """Create a cache by the call with which a model library creates its own."""
    arguments: list[Any] = [None] * 28
    arguments[:13] = [
        tvm_ffi.Shape([8, max_total_tokens, prefill_chunk_size, page_size, 0]),
        tvm_ffi.Shape([0, num_layers]),
        num_qo_heads,
        num_kv_heads,
        head_dim,
        head_dim,
        tvm_ffi.Shape([0] * num_layers),
        False,
        MODES[rope],
        1.0,
        10000.0,
        None if factors is None else to_tensor(factors),
        to_tensor(np.zeros((), dtype)),
    ]
    arguments[24] = rotate
    with kvctl.installed():
        create = tvm_ffi.get_global_func("vm.builtin.paged_attention_kv_cache_create")
        return kvctl.PagedKVCache.wrap(create(*arguments))


def rotation_in_python(angles: Callable[..., np.ndarray], num_kv_heads: int) -> Any:
    """A library's rotation: angles(rows (rows, heads, dim), positions (rows, 1, 1), factors)."""

    def rotate(fused: Any, positions: Any, q: Any, k: Any, v: Any, factors: Any) -> None:
        x, at = np.from_dlpack(fused), np.from_dlpack(positions)[:, None, None]
        factors = () if isinstance(factors, int) else (np.from_dlpack(factors),)
        turned = angles(x[:, :-num_kv_heads], at, *factors)
        np.from_dlpack(q)[...] = turned[:, :-num_kv_heads]
        np.from_dlpack(k)[...] = turned[:, -num_kv_heads:]
        np.from_dlpack(v)[...] = x[:, -num_kv_heads:]

    return tvm_ffi.convert(rotate)


def frequencies(head_dim: int) -> np.ndarray:
    """Radians per position of each pair of elements."""
    half = head_dim // 2
    frequency: np.ndarray = 10000.0 ** (-np.arange(half) / half)
    return frequency


def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn the pairs (d, d + head_dim / 2) of x by these angles."""
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
