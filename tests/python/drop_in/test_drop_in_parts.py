"""Attention in parts: to the new tokens, to the past, to another layer's K and V, and the merge.

Two judges: TVM's cache where it offers as much, and the attention in one call, which must equal the
merge of its parts under any mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from builtin_cache import BuiltinCache, Config, kvctl_cache
from cache_pair import FORMS, with_a_past

NOTHING_SEEN = -5e4  # the lse of TVM's kernels for a row without columns
CHAIN = [[-1, 0, 1], [-1, 0, 1, 2, 3]]
TREE = [[-1, 0, 0], [-1, 0, 0, 1, 2]]


def split(config: Config, qkv: np.ndarray) -> list[np.ndarray]:
    heads = config.num_qo_heads
    return np.split(qkv, [heads, heads + config.num_kv_heads], axis=1)


@pytest.mark.parametrize("rope", ["normal", "inline"])
@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_chunk_are_tvms(form: Config, rope: str) -> None:
    """In normal mode separate q and k stay as they are; in inline mode attention rotates them."""
    pair = with_a_past(replace(form, rope=rope))
    pair.both("begin", [1, 0], [3, 5])
    for layer in range(form.num_layers):
        q, k, v = split(form, pair.qkv(8)[layer])
        inside = pair.both("self_attention", layer, q, k, v)
        before = pair.both("cross_attention", layer, q)
        pair.both("merge", *inside, *before)
    pair.both("end")


@pytest.mark.parametrize("parents", [CHAIN, TREE], ids=["chain", "tree"])
def test_self_attention_in_a_tree_is_tvms(parents: list[list[int]]) -> None:
    pair = with_a_past(Config())
    pair.both("begin", [1, 0], [3, 5], [node for tree in parents for node in tree])
    q, k, v = split(pair.config, pair.qkv(8)[0])
    pair.both("self_attention", 0, q, k, v)
    pair.both("cross_attention", 0, q)


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
def test_a_decoded_token_sees_itself_in_the_cache(rope: str) -> None:
    """TVM writes a single token's K and V before it attends: cross attention then sees them."""
    pair = with_a_past(Config(rope=rope))
    pair.both("begin", [1, 0], [1, 1])
    qkv = pair.qkv(2)[0]
    pair.both("attention", 0, qkv)
    pair.both("cross_attention", 0, split(pair.config, qkv)[0])


@pytest.mark.parametrize("rope", ["normal", "inline"])
@pytest.mark.parametrize("lengths", [[3, 5], [1, 1]], ids=["chunk", "decode"])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_shares_the_kv_of_another(form: Config, lengths: list[int], rope: str) -> None:
    pair = with_a_past(replace(form, rope=rope))
    total = sum(lengths)
    pair.both("begin", [1, 0], lengths)
    qkv = pair.qkv(total)[0]
    pair.both("attention", 0, qkv)
    _, k, v = split(form, qkv)
    q, _, _ = split(form, pair.qkv(total)[0])
    pair.both("shared_kv", 0, q, k, v)
    pair.both("end")


def test_what_sees_nothing_is_zero_and_merges_to_nothing() -> None:
    """TVM leaves the result as it was allocated where no sequence has a past; kvctl writes it."""
    cache = kvctl_cache(Config())
    cache.add(0)
    cache.begin([0], [2])
    rng = np.random.default_rng(0)
    q, k, v = split(cache.config, rng.standard_normal((2, 8, 64), dtype=np.float32))
    out, lse = cache.cross_attention(0, q)
    assert not out.any() and (lse == NOTHING_SEEN).all()
    inside = cache.self_attention(0, q, k, v)
    for got, expected in zip(cache.merge(*inside, out, lse), inside, strict=True):
        np.testing.assert_array_equal(got, expected)
    for got in cache.merge(out, lse, out, lse):
        assert np.isfinite(got).all()


def tree(cache: BuiltinCache, handle: kvctl.PagedKVCache) -> dict[str, Any]:
    """Leave three nodes of a tree pending, on which the step's hang."""
    qkv = np.random.default_rng(3).standard_normal((2, 3, 8, 64), dtype=np.float32)
    cache.forward([0], [qkv], [[-1, 0, 0]])
    return {"mask": kvctl.TokenTree([5] * 9, [-1, 0, 0, 1, 2, 2, 4, 4, 7]).mask()}


MASKS: dict[str, Callable[[BuiltinCache, kvctl.PagedKVCache], dict[str, Any]]] = {
    "causal": lambda cache, handle: {},
    "tree": tree,
    "window": lambda cache, handle: {"mask": kvctl.Mask.window(7, 2)},
    "documents": lambda cache, handle: {"mask": kvctl.Mask.documents([0] * 20 + [1] * 5 + [0] * 2)},
    "nothing": lambda cache, handle: {"mask": ~(kvctl.Mask.causal() | ~kvctl.Mask.causal())},
}


@pytest.mark.parametrize("rope", ["none", "inline"])
@pytest.mark.parametrize("windows", [(), (1,)], ids=["", "layer windows"])
@pytest.mark.parametrize("name", MASKS)
def test_the_parts_make_the_whole_under_any_mask(
    name: str, windows: tuple[int, ...], rope: str
) -> None:
    config = Config(sliding_layers=windows, layer_sliding_window=5, rope=rope)
    cache = kvctl_cache(config)
    handle = kvctl.PagedKVCache.wrap(cache.handle)
    cache.add(0)
    rng = np.random.default_rng(1)
    cache.forward([0], [rng.standard_normal((2, 21, 8, 64), dtype=np.float32)])
    options = MASKS[name](cache, handle)
    handle.begin_forward([0], [6], **options)
    for layer in range(2):
        qkv = rng.standard_normal((6, 8, 64), dtype=np.float32)
        q, k, v = split(config, qkv)
        before = cache.cross_attention(layer, q)
        shared = cache.shared_kv(layer, q, k, v)
        parts = cache.merge(*cache.self_attention(layer, q, k, v), *before)
        lse = np.zeros((6, config.num_qo_heads), np.float32)
        whole = np.from_dlpack(handle.attention(layer, qkv, lse=lse))
        np.testing.assert_allclose(parts[0], whole, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shared, whole, rtol=1e-5, atol=1e-6)
        base_2 = np.maximum(lse / np.log(2), NOTHING_SEEN)
        np.testing.assert_allclose(np.maximum(parts[1], NOTHING_SEEN), base_2, rtol=1e-5, atol=2)
        seen = base_2 > NOTHING_SEEN
        np.testing.assert_allclose(parts[1][seen], base_2[seen], rtol=1e-5, atol=1e-5)
    handle.end_forward()


def test_mistakes() -> None:
    cache = kvctl_cache(Config())
    cache.add(0)
    q, k, v = split(cache.config, np.zeros((2, 8, 64), np.float32))
    with pytest.raises(RuntimeError, match="between begin_forward and end_forward"):
        cache.self_attention(0, q, k, v)
    cache.begin([0], [3])
    with pytest.raises(ValueError, match="q_data"):
        cache.self_attention(0, q, k, v)
    q, k, v = split(cache.config, np.zeros((3, 8, 64), np.float32))
    with pytest.raises(ValueError, match="k_data"):
        cache.self_attention(0, q, q, v)
    with pytest.raises(IndexError, match="layer 2"):
        cache.cross_attention(2, q)
    with pytest.raises(ValueError, match="o_cross_attn"):
        cache.merge(q, np.zeros((3, 4), np.float32), k, np.zeros((3, 2), np.float32))


def test_what_is_refused_is_named() -> None:
    cache = kvctl_cache(Config())
    cache.add(0)
    cache.begin([0], [1])
    call = cache._call
    tensor = tvm_ffi.from_dlpack(np.zeros((1, 64), np.float32))
    with pytest.raises(NotImplementedError, match="MLA"):
        call("attention_kv_cache_append_mla_kv", 0, tensor)
    with pytest.raises(NotImplementedError, match="MLA"):
        call("attention_kv_cache_debug_get_kv_mla", 0, 0, 1, tensor)
    with pytest.raises(NotImplementedError, match="NVSHMEM"):
        call("kv_cache_disagg_prepare_recv", 0, 1)
    with pytest.raises(NotImplementedError, match="NVSHMEM"):
        call("kv_cache_disagg_mark_send", 0, 0, tvm_ffi.Shape([0]), 0)
