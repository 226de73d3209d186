"""Calls on cuda:1 leave the thread's current device what it was: TVM would change it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import KVCTL_CUDA_LIBRARY, put, require

HEADS, DIM = 4, 64

pytestmark = pytest.mark.cuda


@pytest.fixture
def current():
    """Return the function that says which device is current; the emulation has two."""
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation, which has two devices")
    gc.collect()  # TVM's tensors that are still waiting for it
    tvm_ffi.get_global_func("emulate.set_device")(0)
    return tvm_ffi.get_global_func("emulate.get_device")


def make_cache():
    cache = kvctl.PagedKVCache.create(
        num_layers=2,
        num_qo_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM,
        max_total_tokens=256,
        dtype="float16",
        device="cuda:1",
    )
    cache.add_sequence(0)
    return cache


def test_no_call_leaves_another_device_current(current, tmp_path):
    cache = make_cache()
    assert current() == 0
    qkv = put(np.ones((3, 3 * HEADS, DIM)), "cuda:1", "float16")
    tvm_ffi.get_global_func("emulate.set_device")(0)
    with cache.forward([0], [3]):
        for layer in range(2):
            cache.attention(layer, qkv)  # allocates its output
            assert current() == 0
    tensors = [cache.layer_pages(0), cache.page_table([0])]  # TVM frees each on its device
    assert current() == 0
    cache.save_sequence(0, tmp_path / "sequence")
    assert current() == 0
    cache.load_sequence(1, tmp_path / "sequence")
    assert current() == 0
    logits = put(np.zeros((1, 8), np.float32), "cuda:1")
    tvm_ffi.get_global_func("emulate.set_device")(0)
    tree = kvctl.TokenTree.chain([3])
    options = {"drawn": "deterministic", "request_ids": [1], "root_positions": [5]}
    kvctl.verify(logits, tree, rule="target_only", **options)
    assert current() == 0
    del tensors


def test_destroying_a_cache_leaves_the_device(current):
    cache = make_cache()
    del cache
    gc.collect()
    assert current() == 0


def test_the_first_cache_of_a_process_leaves_the_device(current):
    program = (
        "import kvctl, tvm_ffi\n"
        "kvctl.PagedKVCache.create(num_layers=1, num_qo_heads=1, num_kv_heads=1, head_dim=64,"
        " max_total_tokens=16, dtype='float16', device='cuda:1')\n"
        "assert tvm_ffi.get_global_func('emulate.get_device')() == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
