"""What stays on the device from step to step is what the host takes it to be, whatever happens.

Under the emulation: device memory is the host's there, so that a test may corrupt it, and calls to
CUDA can be made to fail.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
import tvm_ffi

from devices import KVCTL_CUDA_LIBRARY, poison, put, require
from kvctl import PagedKVCache
from kvctl.cuda import read_uploads
from upload_program import DIM, HEADS, Program, make_cache

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _emulated():
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation, whose calls can be made to fail")


@pytest.mark.parametrize("seed", range(3))
def test_the_device_has_what_the_host_thinks_after_every_operation(seed, tmp_path):
    program = Program(seed, tmp_path)
    program.run(140)
    missing = [name for name, count in program.done.items() if count == 0]
    assert not missing, f"never done: {missing}"


def test_a_corrupted_word_is_found(tmp_path):
    program = Program(7, tmp_path)
    program.run(30)
    cache = make_cache()
    cache.add_sequence(0)
    cache.begin_forward([0], [20])
    uploads = read_uploads(cache)
    assert uploads.num_different == 0
    words = (ctypes.c_int32 * uploads.num_words).from_address(uploads.address)
    words[uploads.num_words - 1] += 1  # belongs to no row
    assert read_uploads(cache).num_different == 1
    words[uploads.num_words - 1] -= 1
    words[0] += 1  # the first page of the table: the word, and what attention finds
    assert read_uploads(cache).num_different == 2
    words[0] -= 1
    assert read_uploads(cache).num_different == 0


def test_a_replay_reads_the_tables_of_its_own_step():
    """Rows move when they outgrow their place, and a recorded launch finds them."""
    cache, plain = make_cache(), make_cache()
    rng = np.random.default_rng(3)
    qkv = put(np.zeros((1, 3 * HEADS, DIM)), "cuda", "float16")
    out, wanted = (poison((1, HEADS, DIM), "cuda", "float16") for _ in range(2))
    for one in (cache, plain):
        one.add_sequence(0)
    graph = None
    for _ in range(90):
        qkv.copyfrom(rng.standard_normal((1, 3 * HEADS, DIM)).astype(np.float16))
        cache.begin_forward([0], [1])
        if graph is None:
            tvm_ffi.get_global_func("emulate.begin_capture")()
            cache.attention(0, qkv, out)
            graph = tvm_ffi.get_global_func("emulate.end_capture")()
        tvm_ffi.get_global_func("emulate.replay")(graph)
        got = out.numpy()
        assert read_uploads(cache).num_different == 0
        cache.attention(0, qkv, out)
        cache.end_forward()
        with plain.forward([0], [1]):
            plain.attention(0, qkv, wanted)
        np.testing.assert_array_equal(got, wanted.numpy())


def test_a_cache_on_the_cpu_and_what_is_no_cache_are_refused():
    options = {"num_qo_heads": 1, "num_kv_heads": 1, "head_dim": 8, "max_total_tokens": 16}
    cache = PagedKVCache.create(num_layers=1, **options)
    with pytest.raises(NotImplementedError, match="this one is on the CPU"):
        read_uploads(cache)
    with pytest.raises(TypeError, match=r"must be a kvctl\.PagedKVCache, got int"):
        read_uploads(3)
