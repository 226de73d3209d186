"""Memory of the device: outputs come from a pool, and blocks may need more than a GPU shares."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import KVCTL_CUDA_LIBRARY, fetch, put, require

HEADS, DIM = 4, 64

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _emulated():
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation, which counts allocations and imitates small GPUs")


def make_cache(head_dim=DIM):
    cache = kvctl.PagedKVCache.create(
        num_layers=2,
        num_qo_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=head_dim,
        max_total_tokens=256,
        dtype="float16",
        device="cuda",
    )
    cache.add_sequence(0)
    return cache


def test_outputs_that_are_not_given_come_from_a_pool():
    cache, qkv = make_cache(), put(np.ones((1, 3 * HEADS, DIM)), "cuda", "float16")
    count = tvm_ffi.get_global_func("emulate.get_num_allocations")
    counts = []
    for _ in range(8):
        with cache.forward([0], [1]):
            for layer in range(2):
                out = cache.attention(layer, qkv)
        counts.append(count())
    assert counts[-1] == counts[2]
    np.testing.assert_allclose(fetch(out), 1, atol=2e-3)


def test_wide_heads_get_other_kernels_where_a_block_cannot_share_enough(monkeypatch):
    """227 KB: that of 16 rows; 99 KB: that of 32; 64 KB: the plain one."""
    outputs = []
    for kilobytes in ("227", "99", "64"):
        monkeypatch.setenv("KVCTL_EMULATED_SHARED_KB", kilobytes)
        cache = make_cache(256)
        for step in range(6):  # keys of several warps
            qkv = np.random.default_rng(step).standard_normal((9, 3 * HEADS, 256))
            with cache.forward([0], [9]):
                for layer in range(2):
                    out = cache.attention(layer, put(qkv, "cuda", "float16"))
        outputs.append(fetch(out))
    for first, second in itertools.combinations(outputs, 2):
        assert not np.array_equal(first, second)  # another kernel
        np.testing.assert_allclose(first, second, atol=5e-3)
