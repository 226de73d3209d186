"""Pages of 8-bit floats on CUDA, against float64 of the values that they hold.

They need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the CPU.
"""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest

import kvctl
from devices import fetch, poison, put, require, rounded
from kvctl import Mask, PagedKVCache
from kvctl._ffi.functions import cache as functions

LAYERS, QO_HEADS, KV_HEADS, DIM = 2, 4, 2, 64
HEADS = QO_HEADS + 2 * KV_HEADS
BOUND = 2e-3
# For each layer, K or V, and head another magnitude, and no power of two.
SCALES = np.float32([[[0.02, 0.03], [0.025, 0.013]], [[0.015, 0.019], [0.014, 0.04]]])

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _device():
    require("cuda")


def make_cache(**changes):
    options = {
        "num_layers": LAYERS,
        "num_qo_heads": QO_HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 1024,
        "page_size": 16,
        "max_sequences": 8,
        "prefill_chunk_size": 128,
        "dtype": "float8_e4m3fn",
        "kv_scales": SCALES,
        "device": "cuda",
    }
    return PagedKVCache.create(**(options | changes))


def quantised(kv, scales=SCALES):
    """(layers, tokens, 2, heads, dim) as such pages hold it, in float32."""
    scales = np.float32(scales)[:, None, :, :, None]
    elements = (kv.astype(np.float32) / scales).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    return elements.astype(np.float32) * scales


def contents(cache, seq_id):
    return np.stack([fetch(part) for part in cache.get_kv(seq_id)], axis=2)


def attend(qkv, kv, visible, dim):
    """Attention of one layer in float64."""
    out = np.zeros((len(qkv), QO_HEADS, dim))
    for head in range(QO_HEADS):
        k, v = (kv[:, part, head // (QO_HEADS // KV_HEADS)] for part in (0, 1))
        scores = np.where(visible, qkv[:, head] @ k.T * dim**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v
    return out


class Mirror:
    """A cache, and what it should hold."""

    def __init__(self, dtype="float16", **changes):
        self.cache = make_cache(**changes)
        self.dtype, self.dim = dtype, self.cache.head_dim
        self.scales = self.cache.kv_scales
        self.rng = np.random.default_rng(0)
        self.kv = {}

    def add(self, seq_id):
        self.cache.add_sequence(seq_id)
        self.kv[seq_id] = np.zeros((LAYERS, 0, 2, KV_HEADS, self.dim))

    def forward(self, seq_id, n, visible=None, **options):
        """Append n tokens and attend. Returns the largest relative error."""
        past, worst = self.kv[seq_id].shape[1], 0.0
        if visible is None:
            visible = np.tril(np.ones((n, past + n), bool), past)
        qkv = rounded(self.rng.standard_normal((LAYERS, n, HEADS, self.dim)), self.dtype)
        new = qkv[:, :, QO_HEADS:].reshape(LAYERS, n, 2, KV_HEADS, self.dim)
        new = quantised(new, self.scales).astype(np.float64)
        self.kv[seq_id] = np.concatenate([self.kv[seq_id], new], axis=1)
        with self.cache.forward([seq_id], [n], **options):
            for layer in range(LAYERS):
                out = poison((n, QO_HEADS, self.dim), "cuda", self.dtype)
                self.cache.attention(layer, put(qkv[layer], "cuda", self.dtype), out)
                want = attend(qkv[layer], self.kv[seq_id][layer], visible, self.dim)
                error = np.linalg.norm(fetch(out) - want) / np.linalg.norm(want)
                worst = max(worst, float(error) if np.isfinite(error) else np.inf)
        return worst

    def check(self, seq_id):
        np.testing.assert_array_equal(contents(self.cache, seq_id), self.kv[seq_id])


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [("float16", 64), ("bfloat16", 128), ("float32", 64), ("float16", 112), ("float32", 16)],
)
def test_prefill_and_decoding_agree_with_float64_of_the_values(dtype, head_dim):
    mirror = Mirror(dtype, head_dim=head_dim)
    mirror.add(0)
    bound = 1e-2 if dtype == "bfloat16" else BOUND
    for n in (100, 70, 1, 1, 8):
        assert mirror.forward(0, n) < bound
    mirror.check(0)
    assert mirror.cache.num_saturated == 0


def test_scales_of_other_heads_would_not_agree():
    mirror = Mirror()
    mirror.add(0)
    mirror.scales = SCALES[:, :, ::-1]
    assert mirror.forward(0, 50) > 5 * BOUND
    assert (contents(mirror.cache, 0) != mirror.kv[0]).any()


def test_trees_forks_and_rollbacks():
    mirror = Mirror()
    mirror.add(0)
    assert mirror.forward(0, 45) < BOUND
    cache = mirror.cache
    checkpoint = cache.checkpoint(0)
    parents = [-1, 0, 0, 2, 1, 2]
    visible = np.zeros((6, 51), bool)
    visible[:, :45] = True
    for node, parent in enumerate(parents):
        visible[node] |= visible[parent] if parent >= 0 else False
        visible[node, 45 + node] = True
    assert mirror.forward(0, 6, visible, mask=Mask.tree(parents)) < BOUND
    cache.commit([0], [[0, 2, 5]])
    mirror.kv[0] = mirror.kv[0][:, [*range(45), 45, 47, 50]]
    mirror.check(0)
    cache.fork_sequence(0, 1, 37)
    mirror.kv[1] = mirror.kv[0][:, :37]
    cache.debug_poison()
    for seq_id in (1, 0):
        assert mirror.forward(seq_id, 5) < BOUND
        mirror.check(seq_id)
    cache.rollback(0, checkpoint)
    mirror.kv[0] = mirror.kv[0][:, :45]
    assert mirror.forward(0, 1, mask=Mask.causal()) < BOUND
    cache.evict(0, [0, 1, *range(20, 46)])
    mirror.kv[0] = mirror.kv[0][:, [0, 1, *range(20, 46)]]
    mirror.check(0)
    assert mirror.forward(0, 2) < BOUND


def test_windows_and_dense_masks():
    mirror = Mirror()
    mirror.add(0)
    assert mirror.forward(0, 90) < BOUND
    window = np.tril(np.ones((20, 110), bool), 90) & ~np.tril(np.ones((20, 110), bool), 60)
    assert mirror.forward(0, 20, window, mask=Mask.window(30)) < BOUND
    dense = np.random.default_rng(3).random((20, 130)) < 0.4
    dense[:, 0] = True
    assert mirror.forward(0, 20, dense, mask=Mask.full(dense)) < BOUND


def test_what_is_too_large_is_counted_and_infinities_are_nan():
    cache = make_cache(num_layers=1, kv_scales=np.ones((1, 2, KV_HEADS)))
    cache.add_sequence(0)
    qkv = np.zeros((2, HEADS, DIM), np.float32)
    qkv[0, QO_HEADS, 3] = -1e6
    qkv[0, QO_HEADS, 4] = 464  # halfway to what 480 would be: rounds to 448
    qkv[1, QO_HEADS + KV_HEADS, :2] = 465, np.inf
    with cache.forward([0], [2]):
        cache.attention(0, put(qkv, "cuda", "float32"))
    k, v = (fetch(part) for part in cache.get_kv(0))
    assert (k[0, 0, 0, 3], k[0, 0, 0, 4], v[0, 1, 0, 0]) == (-448, 448, 448)
    assert np.isnan(v[0, 1, 0, 1])
    assert cache.num_saturated == 2
    other = make_cache(dtype="float16", kv_scales=None)
    assert (other.num_saturated, other.kv_scales) == (0, None)


def test_own_rope_and_rerotation():
    cache = make_cache(rope=kvctl.Rope(theta=1000.0))
    exact = make_cache(rope=kvctl.Rope(theta=1000.0), dtype="float32", kv_scales=None)
    qkv = np.random.default_rng(5).standard_normal((20, HEADS, DIM))
    for one in (cache, exact):
        one.add_sequence(0)
        with one.forward([0], [20], positions=range(7, 27)):
            for layer in range(LAYERS):
                one.attention(layer, put(qkv, "cuda", "float16"))
    want = quantised(contents(exact, 0))
    near = np.abs(contents(cache, 0) - want) <= np.abs(want) / 8 + 1e-4
    assert near.all() and (contents(cache, 0) == want).mean() > 0.999  # an ulp of the rotation
    for one in (cache, exact):
        one.evict(0, [0, 1, 8, 9, 19], rerotate=True)
    got, want = contents(cache, 0), contents(exact, 0)
    assert np.linalg.norm(got - want) < 0.06 * np.linalg.norm(want)  # two roundings to 4 bits


def test_saved_sequences_keep_their_bytes(tmp_path):
    mirror = Mirror()
    mirror.add(0)
    assert mirror.forward(0, 40) < BOUND
    path = tmp_path / "one.safetensors"
    mirror.cache.save_sequence(0, path)
    mirror.cache.load_sequence(1, path)
    mirror.kv[1] = mirror.kv[0].copy()
    mirror.check(1)
    assert mirror.forward(1, 3) < BOUND
    other = make_cache(page_size=8)
    other.load_sequence(0, path)
    np.testing.assert_array_equal(contents(other, 0), mirror.kv[0])
    with pytest.raises(ValueError, match="kv_scales differ"):
        make_cache(kv_scales=SCALES * 2).load_sequence(0, path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["k"]["dtype"] == "U8"
    assert header["k"]["shape"] == [LAYERS, 40, KV_HEADS, DIM]


def test_selectors_get_q_as_float16_and_sums_agree():
    mirror = Mirror()
    mirror.add(0)
    mirror.forward(0, 40)
    seen, sums = [], []
    mirror.cache.select_pages(lambda layer, q: seen.append(str(q.dtype)) or [None])
    assert mirror.forward(0, 3) < BOUND
    mirror.cache.select_pages(None)
    mirror.cache.observe_attention(lambda layer, seq_ids, new: sums.append(fetch(new[0])))
    assert mirror.forward(0, 3) < BOUND
    assert seen == ["float16"] * LAYERS
    for one in sums:
        np.testing.assert_allclose(one.sum(axis=0), 3 * QO_HEADS / KV_HEADS, rtol=1e-3)


def test_pages_are_bytes_of_half_the_size():
    cache = make_cache()
    pages = cache.layer_pages(0)
    assert (str(pages.dtype), tuple(pages.shape)) == ("float8_e4m3fn", (64, 2, KV_HEADS, 16, DIM))
    np.testing.assert_array_equal(cache.kv_scales, SCALES)
    np.testing.assert_array_equal(make_cache(kv_scales=None).kv_scales, np.ones_like(SCALES))
    assert "kv_scales" in json.loads(str(functions.get_kv_layout(cache.handle)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 72}, "multiple of 16 with float8_e4m3fn pages, got 72"),
        ({"kv_scales": SCALES[:, :, :1]}, r"kv_scales must have shape \(2, 2, 2\)"),
        ({"kv_scales": SCALES * 0}, "must be above 0 and, times 448, finite, got 0"),
        ({"kv_scales": SCALES * np.nan}, "times 448, finite, got nan"),
        ({"kv_scales": np.full_like(SCALES, 1e36)}, "times 448, finite, got 1e"),
        ({"dtype": "float16"}, "kv_scales are for float8_e4m3fn pages, and these are of float16"),
    ],
)
def test_wrong_scales_and_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_cache(**changes)


def test_inline_rope_is_refused():
    with pytest.raises(NotImplementedError, match="inline RoPE is not implemented on CUDA"):
        make_cache(rope=kvctl.Rope(inline=True))


def test_windows_renumber_their_sinks_as_with_float16():
    qkv = np.random.default_rng(7).standard_normal((2, 60, HEADS, DIM))
    results = []
    for changes in ({}, {"dtype": "float16", "kv_scales": None}):
        cache = make_cache(rope=kvctl.Rope(), **changes)
        cache.add_sequence(0)
        cache.enable_sliding_window(0, 16, sinks=2, renumber_sinks=True)
        for step in qkv:
            out = poison((60, QO_HEADS, DIM), "cuda", "float16")
            with cache.forward([0], [60]):
                for layer in range(LAYERS):
                    cache.attention(layer, put(step, "cuda", "float16"), out)
        results.append(fetch(out))
    assert np.linalg.norm(results[0] - results[1]) < 0.08 * np.linalg.norm(results[1])
