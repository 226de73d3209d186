"""Compile a model's graph into a library that TVM's virtual machine loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import tvm
from tvm import relax

from .config import LlamaConfig
from .layers import ParamSpec

_DEFAULT_ARCH = "sm_80"


def make_target(name: str) -> Any:
    """Return TVM's target for "cpu", "cuda" or "cuda:sm_90".

    Raises
    ------
    FileNotFoundError
        If it is CUDA and there is no nvcc.
    ValueError
        If kvctl cannot compile for it.
    """
    if name == "cpu":
        return tvm.target.Target("llvm")
    kind, _, arch = name.partition(":")
    arch = arch or _DEFAULT_ARCH
    if kind != "cuda" or not re.fullmatch(r"sm_[0-9]{2,3}[a-z]?", arch):
        raise ValueError(f"target must be 'cpu', 'cuda' or like 'cuda:sm_90', not '{name}'")
    if shutil.which("nvcc") is None:
        raise FileNotFoundError("compiling for CUDA needs nvcc (of CUDA 13) on the PATH")
    # No device is asked, so that this works on machines without one.
    cuda = {
        "kind": "cuda",
        "arch": arch,
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": 32,
    }
    return tvm.target.Target(cuda, host="llvm")


def make_metadata(
    config: LlamaConfig,
    params: list[ParamSpec],
    *,
    quantization: str,
    context_window_size: int,
    prefill_chunk_size: int,
) -> dict[str, Any]:
    """Return what a library says of itself: MLC's fields, and ours under "kvctl"."""
    return {
        "model_type": "llama",
        "quantization": quantization,
        "context_window_size": context_window_size,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": prefill_chunk_size,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "kv_cache",
        "max_batch_size": 128,
        "active_vocab_size": config.vocab_size,
        "model_task": "chat",
        "kv_cache": {
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
        },
        "params": [
            {
                "name": param.name,
                "shape": list(param.shape),
                "dtype": param.dtype,
                "preprocs": [],
                "param_metadata": {},
            }
            for param in params
        ],
        "kvctl": {
            "format": 1,
            "packed": {param.name: param.packed for param in params if param.packed},
        },
    }


def build(module: tvm.IRModule, metadata: dict[str, Any], target: Any) -> Any:
    """Compile the graph, with ``_metadata`` added; returns TVM's executable.

    Raises
    ------
    ValueError
        If nvcc refuses the kernels that TVM wrote for CUDA.
    """
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    executable = relax.build(builder.get(), target)
    if target.kind.name == "cuda":
        _check_kernels(executable.mod, target.attrs["arch"])
    return executable


def _check_kernels(module: Any, arch: str) -> None:
    """Have nvcc compile the kernels of a module and the modules in it.

    Without a driver TVM saves kernels as CUDA sources, compiled when they are loaded: what
    nvcc would refuse there is better refused here.
    """
    for imported in module.imports:
        _check_kernels(imported, arch)
    if module.kind != "cuda":
        return
    command = ["nvcc", f"-arch={arch}", "-w", "-x", "cu", "--fatbin", "-o", os.devnull, "-"]
    run = subprocess.run(
        command, input=module.inspect_source(), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ValueError(f"nvcc refuses this model's kernels for {arch}:\n{run.stderr.strip()}")
