"""Model directories that are whole, and ones that are not: nothing is loaded from those.

One file, since every damage starts from the same sound directory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tvm_ffi

import kvctl
from relax_library import compile_library, metadata_says
from tiny_model import compile_tiny_model


@pytest.fixture
def directory(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model directory .*absent"):
        kvctl.ModelRunner.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lib.so", r"model has no model library \(a file \*\.so\)"),
        ("tensor-cache.json", r"model has no tensor-cache\.json"),
        ("mlc-chat-config.json", r"model has no mlc-chat-config\.json"),
        ("params_shard_0.bin", r"model has no params_shard_0\.bin"),
    ],
)
def test_missing_files(directory, name, match):
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=match):
        kvctl.ModelRunner.load(directory)


def test_parameters_cut_short(directory):
    shard = directory / "params_shard_0.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    match = rf"params_shard_0\.bin is truncated: it has {len(whole) - 1} bytes, .*{len(whole)}"
    with pytest.raises(ValueError, match=match):
        kvctl.ModelRunner.load(directory)
    shard.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match=rf"is too long: it has {len(whole) + 1} bytes"):
        kvctl.ModelRunner.load(directory)


def test_a_flipped_bit_in_the_parameters(directory):
    shard = directory / "params_shard_0.bin"
    whole = shard.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"params_shard_0\.bin is damaged: its MD5 is \w{32},"):
            kvctl.ModelRunner.load(directory)
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match="is damaged: its MD5"):
        kvctl.ModelRunner.load(directory)


def test_an_index_without_checksums(directory):
    edit(directory / "tensor-cache.json", lambda i: i["records"][0].pop("md5sum"))
    assert len(kvctl.ModelRunner.load(directory).params) > 0


@pytest.mark.parametrize("value", ["", "x" * 32, "0" * 31, 7, None])
def test_checksums_that_are_none(directory, value):
    edit(directory / "tensor-cache.json", lambda i: i["records"][0].update(md5sum=value))
    with pytest.raises(ValueError, match=r"md5sum( must be|' is missing or has the wrong type)"):
        kvctl.ModelRunner.load(directory)


def test_a_shard_whose_name_is_too_long(directory):
    edit(directory / "tensor-cache.json", lambda i: i["records"][0].update(dataPath="a" * 3000))
    with pytest.raises(FileNotFoundError, match="model has no aaa"):
        kvctl.ModelRunner.load(directory)


NAMES = ["tensor-cache.json", "mlc-chat-config.json", "params_shard_0.bin", "lib.so"]


@pytest.mark.parametrize("name", NAMES)
def test_pointers_of_git_lfs(directory, name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is a git-lfs pointer.*'git lfs pull' in"):
        kvctl.ModelRunner.load(directory)


@pytest.mark.parametrize("name", ["tensor-cache.json", "mlc-chat-config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '[{"a":' * 20_000 + "}]" * 9])
def test_json_that_is_nested_too_deeply(directory, name, text):
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is not JSON .* nested deeper than 256 levels"):
        kvctl.ModelRunner.load(directory)


def test_brackets_in_texts_are_no_levels(directory):
    edit(directory / "mlc-chat-config.json", lambda c: c.update(note='"[{' * 1000 + "\\"))
    assert len(kvctl.ModelRunner.load(directory).params) > 0


def test_json_that_is_too_large(directory):
    with (directory / "mlc-chat-config.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match=r"mlc-chat-config\.json has \d+ bytes, more than"):
        kvctl.ModelRunner.load(directory)


@pytest.mark.parametrize("name", ["tensor-cache.json", "params_shard_0.bin"])
def test_pipes_are_no_files(directory, name):
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        kvctl.ModelRunner.load(directory)


def test_library_cut_short(directory):
    library = directory / "lib.so"
    library.write_bytes(library.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"lib\.so is truncated"):
        kvctl.ModelRunner.load(directory)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_bit_in_the_library(directory, place):
    library = directory / "lib.so"
    data = bytearray(library.read_bytes())
    data[int(place * len(data))] ^= 4
    library.write_bytes(data)
    with pytest.raises(ValueError, match=r"lib\.so is damaged, or not the library that kvctl"):
        kvctl.ModelRunner.load(directory)


def test_a_library_without_a_checksum_loads(directory):
    config = json.loads((directory / "mlc-chat-config.json").read_text())
    del config["kvctl"]
    (directory / "mlc-chat-config.json").write_text(json.dumps(config))
    assert len(kvctl.ModelRunner.load(directory).params) > 0


@pytest.mark.parametrize("name", ["tensor-cache.json", "mlc-chat-config.json"])
def test_json_cut_short(directory, name):
    path = directory / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=f"{name} is not valid JSON"):
        kvctl.ModelRunner.load(directory)


@pytest.mark.parametrize("name", ["tensor-cache.json", "mlc-chat-config.json"])
def test_bytes_that_are_no_text(directory, name):
    path = directory / name
    path.write_bytes(
        path.read_bytes().replace(b"float32", b"floa\x8532").replace(b"llama", b"\xff")
    )
    with pytest.raises(ValueError, match=f"{name} is damaged: it is not UTF-8 text"):
        kvctl.ModelRunner.load(directory)


def record_of(name):
    """Finds a parameter in a parsed index."""

    def find(index):
        return next(r for s in index["records"] for r in s["records"] if r["name"] == name)

    return find


norm = record_of("model.norm.weight")  # 64 numbers, float32


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda i: i.pop("records"), "'records' is missing"),
        (lambda i: i.update(records=[7]), "a shard is not an object"),
        (lambda i: i["records"][0].update(records=[7]), "a record is not an object"),
        (lambda i: i["records"][0].update(dataPath="../p.bin"), r"'\.\./p\.bin' is not the name"),
        (lambda i: i["records"][0].update(dataPath="/etc/passwd"), "is not the name of a file"),
        (lambda i: i["records"][0].update(dataPath=""), "'' is not the name of a file"),
        (lambda i: i["records"][0].update(nbytes="7"), "'nbytes' is missing or has the wrong type"),
        (lambda i: norm(i).update(shape=[64, 2]), "takes 512 bytes, the index says 256"),
        (lambda i: norm(i).update(shape=[-64]), "no tensor has the shape"),
        (lambda i: norm(i).update(shape=[1 << 62, 1 << 62]), "no tensor has the shape"),
        (lambda i: norm(i).update(shape=["n"]), "its shape must be integers"),
        (lambda i: norm(i).update(dtype="float33x"), "'float33x' is not a dtype"),
        (lambda i: norm(i).update(dtype=""), "'' is not a dtype"),
        (lambda i: norm(i).update(dtype="float32x4"), "'float32x4' is not a dtype"),
        (lambda i: norm(i).update(format="zip"), "unknown format 'zip'"),
        (lambda i: norm(i).update(byteOffset=1 << 40), "are not within its shard"),
        (lambda i: norm(i).update(byteOffset=-4), "are not within its shard"),
        (lambda i: norm(i).update(byteOffset=(1 << 63) - 1), "are not within its shard"),
        (lambda i: norm(i).update(name="lm_head.weight"), "lm_head.weight appears twice"),
        (lambda i: norm(i).update(name="other"), "lacks parameter model.norm.weight"),
        (
            lambda i: norm(i).update(shape=[8, 8]),
            r"model.norm.weight is float32 \(8, 8\) in .* takes float32 \(64\)",
        ),
        (
            lambda i: norm(i).update(dtype="int32"),
            r"model.norm.weight is int32 \(64\) in .* takes float32 \(64\)",
        ),
    ],
)
def test_index_that_does_not_fit(directory, change, match):
    edit(directory / "tensor-cache.json", change)
    with pytest.raises(ValueError, match=match):
        kvctl.ModelRunner.load(directory)


def test_config_without_a_vocabulary(directory):
    path = directory / "mlc-chat-config.json"
    edit(path, lambda c: (c.pop("vocab_size"), c["model_config"].pop("vocab_size")))
    with pytest.raises(ValueError, match=r"mlc-chat-config\.json: 'vocab_size' is missing"):
        kvctl.ModelRunner.load(directory)


def test_vocabulary_that_is_not_the_models(directory):
    edit(directory / "mlc-chat-config.json", lambda c: c.update(vocab_size=255))
    runner = kvctl.ModelRunner.load(directory)
    runner.cache.add_sequence(0)
    with pytest.raises(RuntimeError, match=r"1 rows of 255 were expected"):
        runner.prefill([0], [[1, 2]])
    assert runner.cache.sequence_length(0) == 0


def test_several_libraries(directory):
    (directory / "lib.so").rename(directory / "one.so")
    assert "one.so" in kvctl.ModelRunner.load(directory).functions.path
    shutil.copy(directory / "one.so", directory / "two.so")
    with pytest.raises(ValueError, match=r"2 libraries and none is called lib\.so: .*one.*two"):
        kvctl.ModelRunner.load(directory)
    shutil.copy(directory / "one.so", directory / "lib.so")
    assert "lib.so" in kvctl.ModelRunner.load(directory).functions.path


def test_index_under_its_old_name(directory):
    (directory / "tensor-cache.json").rename(directory / "ndarray-cache.json")
    assert len(kvctl.ModelRunner.load(directory).params) > 0


def exchange_library(directory, library):
    """Put another library in place of the compiled one, as the message of a damaged one says."""
    config = json.loads((directory / "mlc-chat-config.json").read_text())
    del config["kvctl"]["library_md5"]
    (directory / "mlc-chat-config.json").write_text(json.dumps(config))
    shutil.copy(library, directory / "lib.so")


@pytest.fixture(scope="module")
def other_library(tmp_path_factory):
    """A library that says about itself what a test wants."""
    return compile_library(tmp_path_factory.mktemp("library") / "lib.so")


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"kv_state_kind": "encoder"}, NotImplementedError, "keeps its state as 'encoder'"),
        ({"tensor_parallel_shards": 2}, NotImplementedError, "compiled for 2 devices"),
        ({"pipeline_parallel_stages": 4}, NotImplementedError, "compiled for 4 devices"),
        ({"kvctl": {"format": 2}}, ValueError, "format 2, this kvctl knows format 1"),
        ({}, NotImplementedError, "does not export 'create_flashinfer_paged_kv_cache'"),
    ],
)
def test_libraries_that_the_runner_does_not_run(directory, other_library, changes, kind, match):
    metadata_says({"kv_state_kind": "kv_cache", "params": [], **changes})
    exchange_library(directory, other_library)
    with pytest.raises(kind, match=match):
        kvctl.ModelRunner.load(directory)


def test_library_that_says_nothing(directory, other_library):
    metadata_says({})
    exchange_library(directory, other_library)
    with pytest.raises(ValueError, match="it has no _metadata"):
        kvctl.ModelRunner.load(directory)


def test_values_and_packing(directory):
    """Plain parameters arrive bit by bit, packed ones as their packing function makes them."""
    index = json.loads((directory / "tensor-cache.json").read_text())
    data = (directory / "params_shard_0.bin").read_bytes()
    runner = kvctl.ModelRunner.load(directory)
    packed = runner.metadata["kvctl"]["packed"]
    assert 0 < len(packed) < len(runner.params)
    for spec, loaded in zip(runner.metadata["params"], runner.params, strict=True):
        record = record_of(spec["name"])(index)
        expected = np.frombuffer(
            data, record["dtype"], record["nbytes"] // 4, offset=record["byteOffset"]
        ).reshape(record["shape"])
        if spec["name"] in packed:
            pack = tvm_ffi.get_global_func(packed[spec["name"]])
            expected = np.from_dlpack(pack(tvm_ffi.from_dlpack(expected.copy())))
            assert loaded.dtype == "uint8"
        np.testing.assert_array_equal(np.from_dlpack(loaded), expected)


def test_bfloat16_is_widened(tmp_path):
    directory = compile_tiny_model(tmp_path / "model", dtype="bfloat16")
    index = json.loads((directory / "tensor-cache.json").read_text())
    record = record_of("lm_head.weight")(index)
    assert record["format"] == "f32-to-bf16"
    seen = []
    name = "kvctl.model.pack_linear_bf16"
    pack = tvm_ffi.get_global_func(name)

    def spy(tensor):
        seen.append(np.from_dlpack(tensor).copy())
        return pack(tensor)

    tvm_ffi.register_global_func(name, spy, override=True)
    try:
        kvctl.ModelRunner.load(directory)
    finally:
        tvm_ffi.register_global_func(name, pack, override=True)
    data = (directory / "params_shard_0.bin").read_bytes()
    narrow = np.frombuffer(data, np.uint16, record["nbytes"] // 2, offset=record["byteOffset"])
    expected = (narrow.astype(np.uint32) << 16).view(np.float32).reshape(record["shape"])
    assert expected.std() > 0
    assert any(s.shape == expected.shape and np.array_equal(s, expected) for s in seen)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.02), ("int8", 0.04), ("int4", 0.4)])
@pytest.mark.parametrize("tied", [False, True])
def test_narrow_weights_give_nearly_the_same_logits(tmp_path, dtype, bound, tied):
    changes = {"tie_word_embeddings": tied}
    plain = compile_tiny_model(tmp_path / "plain", changes=changes)
    narrow = compile_tiny_model(tmp_path / "narrow", changes=changes, dtype=dtype)
    logits = []
    for directory in (plain, narrow):
        runner = kvctl.ModelRunner.load(directory)
        runner.cache.add_sequence(0)
        logits.append(np.from_dlpack(runner.prefill([0], [[5, 9, 2, 40, 1]])))
    assert 0 < (logits[1] - logits[0]).std() < bound * logits[0].std()
    size = [sum(one.stat().st_size for one in d.glob("params_*")) for d in (plain, narrow)]
    assert size[1] < size[0]


def test_quantized_weights_are_saved_as_blocks(tmp_path):
    directory = compile_tiny_model(tmp_path / "model", dtype="int4")
    index = json.loads((directory / "tensor-cache.json").read_text())
    qkv = "model.layers.0.self_attn.qkv_proj.weight"
    found = {name: record_of(name)(index) for name in ("lm_head.weight", qkv)}
    assert [one["dtype"] for one in found.values()] == ["uint8", "uint8"]
    assert [one["shape"][-1] for one in found.values()] == [34, 18]


def test_a_packing_function_that_nobody_registered(directory):
    name = "kvctl.model.pack_linear"
    pack = tvm_ffi.get_global_func(name)
    tvm_ffi.remove_global_func(name)
    try:
        with pytest.raises(RuntimeError, match=f"packed by '{name}', which is not registered"):
            kvctl.ModelRunner.load(directory)
    finally:
        tvm_ffi.register_global_func(name, pack)


ADDRESSES_OF_PLAIN_WEIGHTS = """
import sys
import numpy as np
import tvm_ffi
import kvctl

addresses = []


def spy(tensor):
    addresses.append(np.from_dlpack(tensor).ctypes.data)
    return tvm_ffi.from_dlpack(np.zeros(1, np.uint8))


tvm_ffi.register_global_func("kvctl.model.pack_linear", spy, override=True)
kvctl.ModelRunner.load(sys.argv[1])
print(len(set(addresses)), len(addresses))
"""


def test_plain_weights_are_freed_as_they_are_packed(directory):
    """Weights that were all alive together would lie at addresses that all differ.

    In a process of its own: in a heap with holes, freed ones may differ too.
    """
    command = [sys.executable, "-c", ADDRESSES_OF_PLAIN_WEIGHTS, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    different, all_of_them = map(int, done.stdout.split())
    assert 1 < all_of_them and different < all_of_them


def test_progress(directory):
    calls = []
    kvctl.ModelRunner.load(directory, progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {(directory / "params_shard_0.bin").stat().st_size}
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]


def test_progress_may_stop_the_load(directory):
    def stop(done, total):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        kvctl.ModelRunner.load(directory, progress=stop)
    assert kvctl.ModelRunner.load(directory).vocab_size == 256
