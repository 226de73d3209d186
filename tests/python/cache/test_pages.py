"""layer_pages and page_table: another library's attention over the cache's own memory."""

from __future__ import annotations

import numpy as np
import pytest

from kvctl import PagedKVCache

LAYERS, QO_HEADS, KV_HEADS, DIM, PAGE = 2, 4, 2, 16, 4


def make_cache(**changes):
    options = {
        "num_layers": LAYERS,
        "num_qo_heads": QO_HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 256,
        "page_size": PAGE,
    }
    return PagedKVCache.create(**(options | changes))


def append(cache, seq_id, n, rng):
    """A step of n tokens; the outputs of each layer, and its q."""
    if seq_id not in cache:
        cache.add_sequence(seq_id)
    outs, queries = [], []
    with cache.forward([seq_id], [n]):
        for layer in range(LAYERS):
            qkv = rng.standard_normal((n, QO_HEADS + 2 * KV_HEADS, DIM)).astype(np.float32)
            queries.append(qkv[:, :QO_HEADS])
            outs.append(np.from_dlpack(cache.attention(layer, qkv)).copy())
    return outs, queries


def gather(cache, layer, table, i):
    """K and V of sequence i of a page table, (length, kv heads, dim) each."""
    indptr, indices, last = (np.from_dlpack(part) for part in table)
    pages = np.from_dlpack(cache.layer_pages(layer))[indices[indptr[i] : indptr[i + 1]]]
    rows = pages.transpose(1, 0, 3, 2, 4).reshape(2, -1, KV_HEADS, DIM)
    length = max(len(pages) - 1, 0) * PAGE + last[i]
    return rows[:, :length]


def test_the_table_finds_what_get_kv_reads():
    cache, rng = make_cache(), np.random.default_rng(0)
    for seq_id, n in ((3, 9), (1, 4), (7, 1)):
        append(cache, seq_id, n, rng)
    cache.add_sequence(5)
    append(cache, 3, 2, rng)
    cache.fork_sequence(3, 8, 6)
    table = cache.page_table([1, 5, 8, 3])
    assert all(part.dtype == "int32" for part in table)
    assert np.from_dlpack(table[2]).tolist() == [4, 0, 2, 3]
    for i, seq_id in enumerate([1, 5, 8, 3]):
        k, v = (np.from_dlpack(part) for part in cache.get_kv(seq_id))
        for layer in range(LAYERS):
            np.testing.assert_array_equal(gather(cache, layer, table, i), [k[layer], v[layer]])


def test_pages_share_the_cache_s_memory():
    cache, rng = make_cache(), np.random.default_rng(1)
    append(cache, 0, 5, rng)
    page = int(np.from_dlpack(cache.page_table([0])[1])[0])
    np.from_dlpack(cache.layer_pages(1))[page, 0, 1, 2] = 7
    assert (np.from_dlpack(cache.get_kv(0)[0])[1, 2, 1] == 7).all()
    assert cache.layer_pages(0).shape == (cache.num_pages, 2, KV_HEADS, PAGE, DIM)


def test_a_step_in_flight_is_included():
    cache, rng = make_cache(), np.random.default_rng(2)
    append(cache, 0, 4, rng)
    with cache.forward([0], [3]):
        table = cache.page_table([0])
        assert np.from_dlpack(table[0]).tolist() == [0, 2]
        assert np.from_dlpack(table[2]).tolist() == [3]
        for layer in range(LAYERS):
            cache.attention(layer, np.ones((3, QO_HEADS + 2 * KV_HEADS, DIM), np.float32))


def test_torch_attends_over_the_pages():
    torch = pytest.importorskip("torch")
    cache, rng = make_cache(), np.random.default_rng(3)
    append(cache, 0, 13, rng)
    outs, queries = append(cache, 0, 1, rng)
    indptr, indices, last = (torch.from_dlpack(part) for part in cache.page_table([0]))
    for layer in range(LAYERS):
        pages = torch.from_dlpack(cache.layer_pages(layer))[indices[indptr[0] : indptr[1]]]
        kv = pages.permute(1, 2, 0, 3, 4).reshape(2, KV_HEADS, -1, DIM)
        kv = kv[:, :, : (len(pages) - 1) * PAGE + int(last[0])]
        q = torch.from_numpy(queries[layer]).transpose(0, 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            q[None], kv[0][None], kv[1][None], enable_gqa=True
        )
        np.testing.assert_allclose(out[0].transpose(0, 1).numpy(), outs[layer], atol=1e-5)


def test_wrong_arguments_are_refused():
    cache, rng = make_cache(), np.random.default_rng(4)
    append(cache, 0, 40, rng)
    with pytest.raises(IndexError, match="layer 2 is not in a cache of 2 layers"):
        cache.layer_pages(2)
    with pytest.raises(IndexError, match="layer -1"):
        cache.layer_pages(-1)
    with pytest.raises(KeyError, match="9"):
        cache.page_table([0, 9])
    cache.add_sequence(1)
    cache.enable_sliding_window(1, 8, horizon=0)
    for _ in range(3):
        append(cache, 1, 12, rng)
    assert -1 in cache.page_ids(1)
    with pytest.raises(ValueError, match="sequence 1 has evicted pages"):
        cache.page_table([0, 1])
