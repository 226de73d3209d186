"""What a library says of itself: MLC's fields, and ours under "kvctl"."""

from __future__ import annotations

from typing import Any

from ..graph.layers import ParamSpec


def make_metadata(
    params: list[ParamSpec],
    *,
    model_type: str,
    quantization: str,
    context_window_size: int,
    prefill_chunk_size: int,
    vocab_size: int,
    kv_state_kind: str = "kv_cache",
    kv_cache: dict[str, int] | None = None,
    shards: int = 1,
    kvctl: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the metadata of a library.

    Parameters
    ----------
    params : list of ParamSpec
        The parameters in the order in which the functions take them.
    model_type, quantization, context_window_size, prefill_chunk_size, vocab_size, kv_state_kind
        MLC's fields.
    kv_cache : dict, optional
        The shape of the attention layers' cache (`cache_shape`).
    shards : int
        Workers that run the library together.
    kvctl : dict, optional
        More of ours than the format and the packed parameters.
    """
    shape = {} if kv_cache is None else {"kv_cache": kv_cache}
    return {
        "model_type": model_type,
        "quantization": quantization,
        "context_window_size": context_window_size,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": prefill_chunk_size,
        "tensor_parallel_shards": shards,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": kv_state_kind,
        "max_batch_size": 128,
        "active_vocab_size": vocab_size,
        "model_task": "chat",
        **shape,
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
            **(kvctl or {}),
        },
    }


def cache_shape(config: Any, num_layers: int) -> dict[str, int]:
    """Return the shape of the KV cache of `num_layers` attention layers."""
    return {
        "num_hidden_layers": num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
