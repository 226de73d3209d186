"""Work is queued on the stream that torch has chosen, wherever TVM's own was not set.

Under the emulation torch is stood in for by a module that names a stream: the kernels' launches
say on which one they were queued.
"""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import KVCTL_CUDA_LIBRARY, poison, put, require

HEADS, DIM = 4, 64
CHOSEN, OTHER = 0x51000, 0x52000

pytestmark = pytest.mark.cuda


@pytest.fixture
def streams(monkeypatch):
    """Return the function that says which streams were used since it was last called."""
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation, which remembers streams")
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=CHOSEN + device),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    take = tvm_ffi.get_global_func("emulate.take_streams")
    take()
    return lambda: {int(stream) for stream in take()}


def make_cache():
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM,
        max_total_tokens=256,
        dtype="float16",
        device="cuda",
    )
    cache.add_sequence(0)
    return cache


def rows(n):
    return put(np.ones((n, 3 * HEADS, DIM)), "cuda", "float16")


def test_every_call_of_a_step_goes_to_the_chosen_stream(streams):
    cache, out = make_cache(), poison((3, HEADS, DIM), "cuda", "float16")
    qkv = rows(3)
    streams()
    cache.begin_forward([0], [3], mask=kvctl.Mask.tree([-1, 0, 0]))
    assert streams() == {CHOSEN}
    cache.attention(0, qkv, out)
    assert streams() == {CHOSEN}
    cache.end_forward()
    cache.commit([0], [[0, 2]])
    assert streams() == {CHOSEN}
    cache.get_kv(0)
    cache.debug_poison()
    assert streams() == {CHOSEN}


def test_verification_goes_to_the_chosen_stream(streams):
    logits = put(np.ones((2, 50), np.float32), "cuda")
    tree = kvctl.TokenTree.chain([1, 2])
    for rule in ("target_only", "typical"):  # the second decides on the host, after a copy
        streams()
        options = {"drawn": "deterministic", "request_ids": [1], "root_positions": [3]}
        kvctl.verify(logits, tree, rule=rule, **options)
        assert streams() == {CHOSEN}


def test_a_stream_said_to_tvm_counts_more(streams):
    cache, qkv = make_cache(), rows(1)
    streams()
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:0"), OTHER), cache.forward([0], [1]):
        cache.attention(0, qkv)
    assert streams() == {OTHER}
    with cache.forward([0], [1]):
        cache.attention(0, qkv)
    assert streams() == {CHOSEN}


def test_without_a_source_work_goes_to_the_default_stream(streams, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    cache, qkv = make_cache(), rows(1)
    streams()
    with cache.forward([0], [1]):
        cache.attention(0, qkv)
    assert streams() == {0}
