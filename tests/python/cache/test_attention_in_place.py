"""Attention with q, k and v apart, which are read where they lie."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from kvctl._ffi import functions
from kvctl._ffi.convert import to_tensor
from library_rotation import library_cache, rotation_in_python
from small_cache import DIM, KV_HEADS, LAYERS, QO_HEADS, kv, make_cache, rows

HEADS = QO_HEADS + 2 * KV_HEADS


def split(qkv):
    """q, k and v of (..., heads, ...) along axis 1, views of it."""
    return np.split(qkv, [QO_HEADS, QO_HEADS + KV_HEADS], 1)


def in_place(cache, layer, q, k, v, out, lse=None):
    new = [to_tensor(one) for one in (q, k, v, out)]
    lse = None if lse is None else to_tensor(lse)
    call = functions.cache.attend_in_place
    return call(cache.handle, layer, *new, DIM**-0.5, 0.0, None, None, lse)


def packed(qkv):
    """(n, heads, dim) of the fused tensor itself: its rows are further apart than they are long."""
    return split(qkv)


def padded(qkv):
    wide = np.full((2 * len(qkv), HEADS, DIM), np.nan, np.float32)
    wide[::2] = qkv
    return split(wide[::2])


def batched(qkv):
    """(1, heads, n, dim), as a projection leaves them."""
    return [part.swapaxes(0, 1)[None] for part in split(qkv)]


def step(cache, qkv, arrange=None, **options):
    """The results of a step, (LAYERS, n, heads, dim)."""
    n = qkv.shape[1]
    results = []
    with cache.forward([0], [n], **options):
        for layer in range(LAYERS):
            if arrange is None:
                results.append(np.from_dlpack(cache.attention(layer, qkv[layer])))
                continue
            q, k, v = arrange(qkv[layer])
            out = np.full((n, QO_HEADS, DIM), np.nan, np.float32)
            assert in_place(cache, layer, q, k, v, out if q.ndim == 3 else out[None])
            results.append(out)
    return np.stack(results)


def windowed(cache):
    cache.enable_sliding_window(0, 6, sinks=2, renumber_sinks=True)


@pytest.mark.parametrize("arrange", [packed, padded, batched])
@pytest.mark.parametrize(
    ("prepare", "rope"), [(None, None), (None, kvctl.Rope()), (windowed, kvctl.Rope())]
)
def test_bits_are_those_of_one_tensor(arrange, prepare, rope):
    caches = make_cache(rope=rope), make_cache(rope=rope)
    for cache in caches:
        cache.add_sequence(0)
        if prepare is not None:
            prepare(cache)
    for begin, end in ((0, 11), (11, 12), (12, 20)):
        qkv = rows(range(begin, end))
        fused, apart = step(caches[0], qkv), step(caches[1], qkv, arrange)
        np.testing.assert_array_equal(fused, apart)
    mask = kvctl.Mask.tree([-1, 0, 0])
    if prepare is None:
        qkv = rows(range(20, 23))
        fused = step(caches[0], qkv, mask=mask)
        np.testing.assert_array_equal(fused, step(caches[1], qkv, arrange, mask=mask))
    np.testing.assert_array_equal(kv(caches[0], 0), kv(caches[1], 0))


def test_a_batch_of_sequences():
    results = []
    for apart in (False, True):
        cache = make_cache()
        for seq_id in (0, 1, 2):
            cache.add_sequence(seq_id)
        for n in (5, 1):
            qkv = rows(range(3 * n))
            with cache.forward([0, 1, 2], [n, n, n]):
                for layer in range(LAYERS):
                    out = np.empty((3 * n, QO_HEADS, DIM), np.float32)
                    if apart:
                        each = [p.reshape(3, n, -1, DIM).swapaxes(1, 2) for p in split(qkv[layer])]
                        assert in_place(cache, layer, *each, out.reshape(3, n, QO_HEADS, DIM))
                    else:
                        cache.attention(layer, qkv[layer], out)
                    results.append(out)
    for one, other in zip(results[: len(results) // 2], results[len(results) // 2 :], strict=True):
        np.testing.assert_array_equal(one, other)


def test_observers_and_selectors_see_the_same():
    seen = []
    for arrange in (None, batched):
        cache = make_cache()
        cache.add_sequence(0)
        cache.select_pages(lambda layer, q: seen.append(np.from_dlpack(q).copy()) or [[0]])
        with kvctl.AttentionMass(cache) as mass:
            step(cache, rows(range(9)), arrange)
            step(cache, rows(range(9, 10)), arrange)
        seen.append(mass[0])
    for one, other in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        np.testing.assert_array_equal(one, other)


def far_heads(qkv):
    return [np.ascontiguousarray(part.swapaxes(0, 1)).swapaxes(0, 1) for part in split(qkv)]


def far_numbers(qkv):
    return [np.repeat(part, 2, axis=2)[:, :, ::2] for part in split(qkv)]


def uneven(qkv):
    """Three rows of a batch with two tokens each, the tokens of a row close together."""
    wide = np.zeros((3, 4, HEADS, DIM), np.float32)
    wide[:, :2] = qkv.reshape(3, 2, HEADS, DIM)
    q, k, v = np.split(wide[:, :2], [QO_HEADS, QO_HEADS + KV_HEADS], 2)
    return [part.swapaxes(1, 2) for part in (q, k, v)]


@pytest.mark.parametrize("arrange", [far_heads, far_numbers, uneven])
def test_strides_that_are_not_those_of_rows_are_told(arrange):
    cache = make_cache()
    cache.add_sequence(0)
    qkv = rows(range(6))
    expected = step(cache, qkv)
    cache.popn(0, 6)
    with cache.forward([0], [6]):
        for layer in range(LAYERS):
            q, k, v = arrange(qkv[layer])
            out = np.zeros((6, QO_HEADS, DIM), np.float32)
            view = out if q.ndim == 3 else out.reshape(3, 2, QO_HEADS, DIM)
            assert not in_place(cache, layer, q, k, v, view)
            assert not out.any()
            assert in_place(cache, layer, *split(qkv[layer]), out)
            np.testing.assert_array_equal(out, expected[layer])


def test_a_library_s_rotation_needs_one_tensor():
    cache = library_cache(
        rotation_in_python(lambda x, at: x, KV_HEADS),
        num_layers=LAYERS,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=64,
        page_size=4,
        prefill_chunk_size=16,
    )
    cache.add_sequence(0)
    out = np.zeros((3, QO_HEADS, DIM), np.float32)
    with cache.forward([0], [3], pending=True):
        assert not in_place(cache, 0, *split(rows(range(3))[0]), out)


def test_what_is_refused_changes_nothing():
    cache = make_cache()
    cache.add_sequence(0)
    qkv = rows(range(3))[0]
    q, k, v = split(qkv)
    out = np.empty((3, QO_HEADS, DIM), np.float32)
    wrong = [
        ((q[0], k, v, out), ValueError, "q must have 3 or 4 dimensions, got 2"),
        ((q[:, :3], k, v, out), ValueError, r"q must have shape \(3, 4, 16\), got \(3, 3, 16\)"),
        ((q, k[:2], v, out), ValueError, r"k must have shape \(3, 2, 16\), got \(2, 2, 16\)"),
        ((q, k, v[None], out), ValueError, r"v must have shape \(3, 2, 16\), got \(1, 3, 2, 16\)"),
        ((q, k, v.astype(np.float16), out), TypeError, "v must be float32, got float16"),
        ((q.astype(np.int32), *[x.astype(np.int32) for x in (k, v)], out), TypeError, "int32"),
        ((q[:2], k[:2], v[:2], out), ValueError, "q has 2 rows and the step has 3 new tokens"),
        ((q, k, v, out[:2]), ValueError, "the attention output must have shape"),
        ((q, k, v, np.empty((3, 2 * QO_HEADS, DIM), np.float32)[:, ::2]), ValueError, "contiguous"),
    ]
    with pytest.raises(RuntimeError, match="between begin_forward and end_forward"):
        in_place(cache, 0, q, k, v, out)
    with cache.forward([0], [3], pending=True):
        for given, kind, message in wrong:
            with pytest.raises(kind, match=message):
                in_place(cache, 0, *given)
        with pytest.raises(IndexError, match="layer 9 is not in the cache"):
            in_place(cache, 9, q, k, v, out)
        with pytest.raises(ValueError, match="lse must have shape"):
            in_place(cache, 0, q, k, v, out, lse=np.empty((3, 3), np.float32))
        assert in_place(cache, 0, q, k, v, out)
    cache.abort()
    np.testing.assert_array_equal(step(cache, qkv[None].repeat(LAYERS, 0))[0], out)
