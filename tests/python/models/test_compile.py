"""compile_model: what it writes, what it refuses, and that it leaves nothing half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from checkpoint_files import write_gguf, write_huggingface
from kvctl.models import RandomCheckpoint, compile_model
from kvctl.models.build import library
from tiny_model import compile_tiny_model, tiny_config


def test_the_directory_is_one_that_mlc_would_recognise(tiny_model):
    files = {file.name for file in tiny_model.iterdir()}
    assert {"lib.so", "tensor-cache.json", "mlc-chat-config.json", "params_shard_0.bin"} <= files
    chat = json.loads((tiny_model / "mlc-chat-config.json").read_text())
    assert chat["model_config"]["num_key_value_heads"] == 2
    assert (chat["vocab_size"], chat["context_window_size"]) == (256, 512)


def test_progress_goes_from_0_to_1_in_each_stage(tmp_path):
    seen = []
    compile_tiny_model(tmp_path / "m", progress=lambda stage, done: seen.append((stage, done)))
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == ["compile", "weights"]
    for stage in stages:
        fractions = [done for name, done in seen if name == stage]
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] and fractions[-1] == 1


def test_a_model_is_replaced_whole(tmp_path):
    directory = compile_tiny_model(tmp_path / "m", seed=1)
    before = (directory / "params_shard_0.bin").read_bytes()
    compile_tiny_model(directory, seed=2, force=True)
    assert (directory / "params_shard_0.bin").read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


class _BrokenCheckpoint(RandomCheckpoint):
    def tensor(self, name):
        if name == "model.layers.1.mlp.up_proj.weight":
            raise ValueError("the disk is gone")
        return super().tensor(name)


def test_a_failure_leaves_what_was_there(tmp_path):
    directory = compile_tiny_model(tmp_path / "m")
    before = (directory / "params_shard_0.bin").read_bytes()
    with pytest.raises(ValueError, match="the disk is gone"):
        compile_model(_BrokenCheckpoint(tiny_config(), seed=3), directory, force=True)
    assert (directory / "params_shard_0.bin").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_graph_that_fails_beside_the_weights_leaves_what_was_there(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("no such kernel")

    directory = compile_tiny_model(tmp_path / "m")
    before = (directory / "lib.so").read_bytes()
    monkeypatch.setattr(library, "build", fail)
    with pytest.raises(ValueError, match="no such kernel"):
        compile_tiny_model(directory, seed=3, force=True)
    assert (directory / "lib.so").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_no_room_for_the_library(tmp_path, monkeypatch):
    def fail(file, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(library.os, "posix_fallocate", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*lib\.so'"):
        compile_tiny_model(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


class _OddCheckpoint(RandomCheckpoint):
    def shape(self, name):
        return (3, 3) if name == "model.layers.1.mlp.up_proj.weight" else super().shape(name)


def test_shapes_are_checked_before_anything_is_compiled(tmp_path):
    seen = []
    with pytest.raises(ValueError, match=r"up_proj.weight' is \(3, 3\), .* \(96, 64\)"):
        compile_model(
            _OddCheckpoint(tiny_config()), tmp_path / "m", progress=lambda *step: seen.append(step)
        )
    assert seen == [("compile", 0.0)]
    assert not any(tmp_path.iterdir())


def test_only_models_are_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not a model directory .* 'precious.txt'"):
        compile_tiny_model(tmp_path, force=True)
    with pytest.raises(FileExistsError, match="not a model directory"):
        compile_tiny_model(tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_model_is_not_replaced_unasked(tmp_path):
    directory = compile_tiny_model(tmp_path / "m", seed=1)
    before = (directory / "params_shard_0.bin").read_bytes()
    with pytest.raises(FileExistsError, match="holds a compiled model"):
        compile_tiny_model(directory, seed=2)
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt'"):
        compile_tiny_model(directory, seed=2, force=True)
    assert (directory / "params_shard_0.bin").read_bytes() == before


def _source(directory):
    """Write a Hugging Face checkpoint that was once part of a compiled model's directory, too."""
    directory.mkdir()
    write_huggingface(directory)
    (directory / "mlc-chat-config.json").write_text("{}")
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("force", [False, True])
def test_a_source_is_never_deleted(tmp_path, force):
    source = tmp_path / "s"
    files = _source(source)
    link = tmp_path / "link"
    link.symlink_to(source)
    for output in (source, link, source / ".." / "s", tmp_path):
        with pytest.raises(ValueError, match="holds the model that is compiled"):
            compile_model(source, output, force=force)
        with pytest.raises(ValueError, match="holds the model that is compiled"):
            compile_model(link, output, force=force)
    with pytest.raises(ValueError, match="holds the model that is compiled"):
        compile_model(source / "model-0.safetensors", source, force=force)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == files


def test_a_gguf_in_the_output_is_never_deleted(tmp_path):
    gguf = write_gguf(tmp_path / "m.gguf")
    content = gguf.read_bytes()
    with pytest.raises(ValueError, match=r"holds the model .*m\.gguf"):
        compile_model(gguf, tmp_path, force=True)
    assert gguf.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of float32, bfloat16, int8, int4, not 'int3'"),
        ({"target": "tpu"}, "target must be .* not 'tpu'"),
        ({"target": "cuda:90"}, "target must be .* not 'cuda:90'"),
        ({"context_window_size": 513}, "from 1 to the model's 512, not 513"),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compile_tiny_model(tmp_path / "m", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif("KVCTL_LONG_TESTS" not in os.environ, reason="long: set KVCTL_LONG_TESTS")
def test_cross_compiling_for_cuda(tmp_path):
    """No GPU is needed to compile; what runs on one is tested where there is one."""
    directory = compile_tiny_model(tmp_path / "m", target="cuda:sm_90", cache="kvctl")
    chat = json.loads((directory / "mlc-chat-config.json").read_text())
    assert chat["quantization"] == "q0f16"
    index = json.loads((directory / "tensor-cache.json").read_text())
    dtypes = {record["dtype"] for shard in index["records"] for record in shard["records"]}
    assert dtypes == {"float16"}
    assert b"rms_norm_kernel" in (directory / "lib.so").read_bytes()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_kernels_that_nvcc_refuses():
    class Kernels:
        kind = "cuda"
        imports = ()

        def inspect_source(self):
            return "__global__ void f() { undeclared(); }"

    class Library(Kernels):
        kind = "llvm"
        imports = (Kernels(),)

    with pytest.raises(ValueError, match=r"nvcc refuses .* sm_90:(.|\n)*undeclared"):
        library._check_kernels(Library(), "sm_90")


def test_cuda_without_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nvcc"):
        compile_tiny_model(tmp_path / "m", target="cuda")


def test_a_runtime_only_tvm_is_an_import_error():
    run = subprocess.run(
        [sys.executable, "-c", "import kvctl.models"],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: kvctl.models needs TVM's compiler" in run.stderr


def test_a_missing_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        compile_model(tmp_path / "nothing.gguf", tmp_path / "out")
