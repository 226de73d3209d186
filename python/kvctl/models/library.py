"""Compile a model's graph into a library that TVM's virtual machine loads."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import relax

from .config import LlamaConfig
from .layers import ParamSpec


def make_target(name: str) -> Any:
    """Return TVM's target for "cpu".

    Raises
    ------
    ValueError
        If kvctl cannot compile for it.
    """
    if name != "cpu":
        raise ValueError(f"target must be 'cpu', not '{name}'")
    return tvm.target.Target("llvm")


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
    """Compile the graph, with ``_metadata`` added; returns TVM's executable."""
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    return relax.build(builder.get(), target)
