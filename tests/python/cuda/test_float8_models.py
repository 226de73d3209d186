"""A compiled model whose K and V are 8-bit floats: what reaches the cache, and what is refused.

Such pages are for CUDA. The CUDA case needs a GPU and TVM's compiler: emulation runs no compiled
model.
"""

import os

import numpy as np
import pytest

from devices import KVCTL_CUDA_LIBRARY, require
from kvctl import ModelRunner
from kvctl._ffi import functions
from tiny_model import compile_tiny_model


def scales_of(cache):
    heads = np.arange(1, 1 + cache.num_layers * 2 * cache.num_kv_heads, dtype=np.float32)
    return heads.reshape(cache.num_layers, 2, cache.num_kv_heads) / 64


@pytest.fixture(scope="module")
def scales(tiny_model):
    return scales_of(ModelRunner.load(tiny_model).cache)


def test_the_cpu_refuses_such_pages(tiny_model, scales):
    with pytest.raises(NotImplementedError, match="float8_e4m3fn pages are implemented on CUDA"):
        ModelRunner.load(tiny_model, kv_dtype="float8_e4m3fn", kv_scales=scales)


@pytest.mark.parametrize("kv_dtype", [None, "float32"])
def test_scales_are_for_such_pages(tiny_model, scales, kv_dtype):
    with pytest.raises(ValueError, match="are for float8_e4m3fn pages, and these are of float32"):
        ModelRunner.load(tiny_model, kv_dtype=kv_dtype, kv_scales=scales)


def test_a_model_without_k_and_v_has_no_scales(recurrent_models, scales):
    with pytest.raises(ValueError, match="has no K and V, so kv_scales cannot be chosen"):
        ModelRunner.load(recurrent_models("delta", emit_steps=True), kv_scales=scales)


def test_scales_reach_the_runner_as_float32(tiny_model, scales, monkeypatch):
    given = []

    def load(*arguments):
        given.extend(arguments)
        raise NotImplementedError("no GPU")

    monkeypatch.setattr(functions.runner, "load_model", load)
    with pytest.raises(NotImplementedError, match="no GPU"):
        ModelRunner.load(tiny_model, kv_dtype="float8_e4m3fn", kv_scales=scales.tolist())
    at = given.index("float8_e4m3fn")
    np.testing.assert_array_equal(np.from_dlpack(given[at + 1]), scales)
    assert str(given[at + 1].dtype) == "float32"


@pytest.mark.cuda
def test_scales_reach_the_cache(tmp_path, scales):
    require("cuda")
    if os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs a GPU: a compiled model runs its own kernels")
    tiny_model = compile_tiny_model(tmp_path / "cuda", target="cuda")
    load = {"device": "cuda", "kv_dtype": "float8_e4m3fn"}
    cache = ModelRunner.load(tiny_model, kv_scales=scales, **load).cache
    assert cache.dtype == "float8_e4m3fn"
    np.testing.assert_array_equal(cache.kv_scales, scales)
    plain = ModelRunner.load(tiny_model, **load).cache
    np.testing.assert_array_equal(plain.kv_scales, np.ones_like(scales))
    with pytest.raises(ValueError, match=r"kv_scales must have shape"):
        ModelRunner.load(tiny_model, kv_scales=scales[:, :1], **load)
    with pytest.raises(ValueError, match="must be above 0"):
        ModelRunner.load(tiny_model, kv_scales=-scales, **load)
