"""What ParamWriter writes, TVM's own loader reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import tvm

from kvctl.models.build import params
from kvctl.models.build.params import ParamWriter

RNG = np.random.default_rng(0)


@pytest.fixture
def load():
    def load(directory, names):
        tvm.get_global_func("vm.builtin.tensor_cache.load")(str(directory), 1, 0)
        by_name = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
        return [tensor.numpy() for tensor in by_name]

    yield load
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()


def test_round_trip_over_several_shards(tmp_path, load, monkeypatch):
    monkeypatch.setattr(params, "_SHARD_BYTES", 1000)
    arrays = {f"p{i}": RNG.standard_normal((i + 1, 40), dtype=np.float32) for i in range(9)}
    arrays["half"] = RNG.standard_normal(30).astype(np.float16)
    writer = ParamWriter(tmp_path)
    for name, array in arrays.items():
        writer.add(name, array)
    writer.alias("again", "p3")
    writer.finish({})
    index = json.loads((tmp_path / "tensor-cache.json").read_text())
    assert len(index["records"]) > 5
    for array, loaded in zip(arrays.values(), load(tmp_path, list(arrays)), strict=True):
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(load(tmp_path, ["again"])[0], arrays["p3"])
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("params_shard_*.bin"))
    assert on_disk == sum(array.nbytes for array in arrays.values())


def test_bfloat16_rounds_to_nearest_even(tmp_path, load):
    half_way = np.float32(1 + 2**-8)
    values = np.array([1.5, half_way, 1 + 3 * 2**-8, -0.0, np.inf, np.nan, 3e38], np.float32)
    writer = ParamWriter(tmp_path)
    writer.add("w", values, bfloat16=True)
    writer.finish({})
    assert (tmp_path / "params_shard_0.bin").stat().st_size == 2 * len(values)
    loaded = load(tmp_path, ["w"])[0]
    wanted = np.array([1.5, 1.0, 1 + 4 * 2**-8, -0.0, np.inf, np.nan, 3e38], np.float32)
    np.testing.assert_allclose(loaded, wanted, rtol=2**-8)
    np.testing.assert_array_equal(loaded[:6], wanted[:6])
    assert np.signbit(loaded[3])
