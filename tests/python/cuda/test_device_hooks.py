"""Page selectors, sums of attention and rotated keys on every device: the results of the CPU.

CUDA cases need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the
CPU.
"""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from devices import DEVICES, fetch, poison, put, require
from kvctl import Mask, PagedKVCache

HEADS, KV_HEADS, DIM = 4, 2, 64

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _device(device):
    require(device)


def make_cache(device, **options):
    cache = PagedKVCache.create(
        num_layers=2,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=1024,
        page_size=8,
        prefill_chunk_size=128,
        dtype="float16",
        device=device,
        **options,
    )
    for seq_id in range(2):
        cache.add_sequence(seq_id)
    return cache


def step(cache, device, seed, lengths, **options):
    """Attention of a step over both sequences: the output of every layer."""
    rng, outputs = np.random.default_rng(seed), []
    with cache.forward([0, 1], lengths, **options):
        for layer in range(2):
            qkv = rng.standard_normal((sum(lengths), HEADS + 2 * KV_HEADS, DIM))
            out = poison((sum(lengths), HEADS, DIM), device, "float16")
            cache.attention(layer, put(qkv, device, "float16"), out)
            outputs.append(fetch(out))
    return np.stack(outputs)


def close(got, want, bound=2e-3):
    assert np.linalg.norm(got - want) < bound * np.linalg.norm(want)


def test_page_selectors_choose_per_sequence_and_head(device):
    results, queries = [], []
    for where in ["cpu", device]:
        cache, seen = make_cache(where, rope=kvctl.Rope()), []

        def select(layer, q, seen=seen):
            seen.append((layer, fetch(q)))
            return [[0, 3], None] if layer == 0 else [[[1], None], [[0, 2], []]]

        outputs = [step(cache, where, 0, [61, 40])]
        cache.select_pages(select)
        outputs += [step(cache, where, 1, [1, 1]), step(cache, where, 2, [3, 20])]
        cache.select_pages(None)
        outputs.append(step(cache, where, 3, [1, 1]))
        results.append(outputs)
        queries.append(seen)
    for want, got in zip(*results, strict=True):
        close(got, want)
    for (layer, want), (same, got) in zip(*queries, strict=True):
        assert layer == same
        close(got, want)


def test_what_a_selector_raises_comes_out(device):
    cache = make_cache(device)
    step(cache, device, 0, [10, 10])
    cache.select_pages(lambda layer, q: [[99], None])
    with pytest.raises(IndexError, match="page 99"):
        step(cache, device, 1, [1, 1])


@pytest.mark.parametrize("heads", ["kv", "qo"])
@pytest.mark.parametrize("last", [0, 2])
def test_observers_get_the_sums_of_the_cpu(device, heads, last):
    results = []
    for where in ["cpu", device]:
        cache, seen = make_cache(where), []
        cache.observe_attention(
            lambda layer, ids, sums, seen=seen: seen.append(
                (layer, ids, [fetch(one) for one in sums])
            ),
            heads=heads,
            last=last,
        )
        step(cache, where, 0, [70, 12], mask=[Mask.window(20, 3), None])
        step(cache, where, 1, [1, 5])
        results.append(seen)
    for (layer, ids, want), (same, others, got) in zip(*results, strict=True):
        assert (layer, ids) == (same, others)
        for one, other in zip(want, got, strict=True):
            np.testing.assert_allclose(other, one, atol=2e-3, rtol=2e-3)


def test_sums_that_a_call_asks_for_are_added_to_what_is_there(device):
    cache = make_cache(device)
    qkv = np.random.default_rng(4).standard_normal((9, HEADS + 2 * KV_HEADS, DIM))
    mass = put(np.full((9, HEADS), 10, np.float32), device)
    with cache.forward([0], [9]):
        cache.attention(0, put(qkv, device, "float16"), mass=mass)
        cache.attention(1, put(qkv, device, "float16"))
    sums = fetch(mass) - 10
    np.testing.assert_allclose(sums.sum(axis=0), 9, atol=1e-2)  # one for each new token
    assert (sums >= -1e-4).all()


def test_evicted_keys_are_rotated_to_their_new_positions(device):
    keys, outputs = [], []
    for where in ["cpu", device]:
        cache = make_cache(where, rope=kvctl.Rope(theta=1000.0))
        step(cache, where, 0, [61, 40])
        cache.evict(0, [*range(4), *range(30, 61)], rerotate=True)
        keys.append(fetch(cache.get_kv(0)[0]))
        outputs.append(step(cache, where, 1, [2, 2]))
    close(keys[1], keys[0], 1e-3)
    close(outputs[1], outputs[0])
