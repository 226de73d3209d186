"""Memory of the device: outputs come from a pool, and blocks may need more than a GPU shares."""

from __future__ import annotations

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


def test_wide_heads_are_refused_where_a_block_cannot_share_enough(monkeypatch):
    assert make_cache(256)
    monkeypatch.setenv("KVCTL_EMULATED_SHARED_KB", "99")
    with pytest.raises(NotImplementedError, match=r"head_dim 256 needs .* this GPU has 101376"):
        make_cache(256)
    assert make_cache(128)
