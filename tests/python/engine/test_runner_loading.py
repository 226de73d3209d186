"""How a runner is loaded, and what it says of itself."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl._ffi import libraries
from loaded_runner import TOKENS, TOLERANCE, array, load


def max_concurrency():
    runtime = ctypes.CDLL(str(libraries.package_dir("tvm") / "lib" / "libtvm_runtime.so"))
    return runtime._ZN3tvm7runtime9threading14MaxConcurrencyEv()


def set_max_concurrency(value):
    runtime = ctypes.CDLL(str(libraries.package_dir("tvm") / "lib" / "libtvm_runtime.so"))
    runtime._ZN3tvm7runtime9threading17SetMaxConcurrencyEi(value)


def test_tvms_pool_stays_out_of_our_models(tiny_model):
    seen = []
    name = "kvctl.model.silu_mul"
    original = tvm_ffi.get_global_func(name)

    def kernel(*args):
        seen.append(max_concurrency())
        return original(*args)

    tvm_ffi.register_global_func(name, kernel, override=True)
    try:
        runner = load(tiny_model, 0)
    finally:
        tvm_ffi.register_global_func(name, original, override=True)
    before = max_concurrency()
    set_max_concurrency(3)
    try:
        runner.prefill([0], [TOKENS[:4]])
        assert set(seen) == {1}
        assert max_concurrency() == 3
        with pytest.raises(KeyError):
            runner.decode([5], [1])
        assert max_concurrency() == 3
    finally:
        set_max_concurrency(before)


def test_library_loaded_too_early(tiny_model_tvm, reference):
    early = kvctl.FunctionTable(tiny_model_tvm / "lib.so")
    with pytest.raises(RuntimeError, match=r"loaded before that was installed"):
        kvctl.ModelRunner.load(tiny_model_tvm, library=early)
    with kvctl.installed():
        table = kvctl.FunctionTable(tiny_model_tvm / "lib.so")
    runner = load(tiny_model_tvm, 0, library=table)
    logits = array(runner.prefill([0], [TOKENS[:9]]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:9])[-1:], **TOLERANCE)


def test_loading_leaves_the_installation_as_it_was(tiny_model_tvm):
    load(tiny_model_tvm)
    with pytest.raises(RuntimeError, match=r"loaded before that was installed"):
        kvctl.ModelRunner.load(
            tiny_model_tvm, library=kvctl.FunctionTable(tiny_model_tvm / "lib.so")
        )
    with kvctl.installed():
        load(tiny_model_tvm)
        kvctl.ModelRunner.load(
            tiny_model_tvm, library=kvctl.FunctionTable(tiny_model_tvm / "lib.so")
        )


def test_the_cache_outlives_its_runner(tiny_model):
    cache = load(tiny_model, 0).cache
    assert cache.sequence_length(0) == 0


def test_what_a_runner_says_of_itself(tiny_model, plain_model):
    runner = load(tiny_model, max_total_tokens=100, page_size=8)
    assert runner.metadata["kvctl"]["format"] == 1
    assert runner.config["vocab_size"] == 256
    assert "batch_verify" in runner.functions
    assert len(runner.params) == len(runner.metadata["params"])
    assert runner.cache.page_size == 8
    assert runner.cache.num_pages >= 13
    assert "lib.so" in repr(runner)
    assert load(plain_model).functions.path.endswith("tiny-plain-cpu.so")


def test_default_sizes(tiny_model):
    assert load(tiny_model).cache.num_pages == 4 * 512 // 16
    assert load(tiny_model, max_sequences=100).cache.num_pages == 8192 // 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": 0}, "max_sequences must be at least 1, got 0"),
        ({"max_sequences": 129}, "max_sequences must be from 1 to 128"),
        ({"prefill_chunk_size": 513}, "prefill_chunk_size must be from 1 to 512"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size must be at least 1, got 0"),
        ({"max_total_tokens": 0}, "max_total_tokens must be at least 1, got 0"),
        ({"max_total_tokens": -5}, "max_total_tokens must be at least 1, got -5"),
        ({"page_size": 0}, "at least 1"),
    ],
)
def test_sizes_out_of_range(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        kvctl.ModelRunner.load(tiny_model, **options)


def test_pending_is_a_yes_or_a_no(tiny_model):
    runner = load(tiny_model, 0)
    with pytest.raises(TypeError, match="pending must be True, False or None, got 'x'"):
        runner.forward([0], [[5]], pending="x")
    runner.forward([0], [[5]], pending=True)
    assert runner.cache.pending_length(0) == 1
