"""Every family compiled for CUDA: its functions, its metadata, and what nvcc says of its kernels.

Compiling needs no GPU. Nothing here runs on one: the kernels of these models have never run.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
if shutil.which("nvcc") is None:
    pytest.skip("compiling for CUDA needs nvcc on the PATH", allow_module_level=True)

from family_files import CASES, Family
from kvctl.models import compile_model
from kvctl.models.build import library

# MLC-LLM's names; "_metadata" is added to them when the library is built.
FUNCTIONS = {"embed", "batch_prefill", "batch_decode", "batch_verify", "get_logits"}
METADATA = {
    "model_type",
    "quantization",
    "context_window_size",
    "sliding_window_size",
    "attention_sink_size",
    "prefill_chunk_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "disaggregation",
    "kv_state_kind",
    "max_batch_size",
    "active_vocab_size",
    "model_task",
    "kv_cache",
    "params",
}
ARCHITECTURES = {Family(case).config["model_type"]: case for case in CASES}
SHORT = ("gemma2",)  # the others take up to 20 s each
LONG = "KVCTL_LONG_TESTS" in os.environ


def compile_for_cuda(monkeypatch, tmp_path, case, **options):
    """Return the directory, the names of the graph's functions, and the library's metadata."""
    seen = {}
    build = library.build

    def spy(module, metadata, target):
        seen["names"] = {variable.name_hint for variable in module.get_global_vars()}
        seen["metadata"] = metadata
        return build(module, metadata, target)

    monkeypatch.setattr(library, "build", spy)
    source = Family(case).write(tmp_path / "source")
    directory = compile_model(source, tmp_path / "m", target="cuda:sm_90", **options)
    return directory, seen["names"], seen["metadata"]


def test_every_family_is_here():
    assert len(ARCHITECTURES) == 12


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=() if case in SHORT or LONG else pytest.mark.skip("long: set KVCTL_LONG_TESTS"),
        )
        for case in CASES
    ],
)
def test_a_library_for_cuda(tmp_path, monkeypatch, case):
    if not LONG:  # one model's kernels go through nvcc in test_kernels_that_nvcc_takes
        monkeypatch.setattr(library, "_check_kernels", lambda module, arch: None)
    directory, names, metadata = compile_for_cuda(
        monkeypatch, tmp_path, case, hidden_layers=[0], exit_layers=[1]
    )
    soft_capped = case == "gemma2"  # TVM's cache has no soft caps: the library creates kvctl's
    created = {"create_tir_paged_kv_cache"}
    ours = {"batch_verify_to_hidden_states", "batch_verify_until_1", "batch_verify_from_1"}
    assert created | FUNCTIONS | ours <= names
    assert METADATA <= set(metadata)
    assert (
        metadata["model_type"]
        == json.loads((directory / "mlc-chat-config.json").read_text())["model_type"]
    )
    assert metadata["quantization"] == "q0f16"
    assert {param["dtype"] for param in metadata["params"]} == {"float16"}
    assert metadata["kvctl"]["hidden_layers"] == [0]
    assert metadata["kvctl"]["packed"] == {}
    code = (directory / "lib.so").read_bytes()
    assert json.dumps(metadata).encode() in code
    assert (b"kvctl.cache.create" in code) == soft_capped
    assert b"__global__" in code  # kernels, saved as CUDA sources where there is no driver
    index = json.loads((directory / "tensor-cache.json").read_text())
    dtypes = {record["dtype"] for shard in index["records"] for record in shard["records"]}
    assert dtypes == {"float16"}


@pytest.mark.skipif(LONG, reason="every family's kernels go through nvcc above")
def test_kernels_that_nvcc_takes(tmp_path, monkeypatch):
    checked = []
    check = library._check_kernels
    monkeypatch.setattr(
        library, "_check_kernels", lambda *arguments: checked.append(check(*arguments))
    )
    compile_for_cuda(monkeypatch, tmp_path, "qwen3", cache="kvctl")
    assert checked
