"""The call in a model's graph that creates kvctl's paged KV cache."""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode

SIZES = (
    "max_batch_size",
    "max_total_seq_len",
    "prefill_chunk_size",
    "page_size",
    "support_sliding_window",
)
"""The arguments of ``create_tir_paged_kv_cache``, as MLC-LLM passes them."""


def create_kvctl_cache(
    config: Any, num_layers: int, sizes: list[tirx.Var], dtype: str, *, rope_scale: float = 1.0
) -> PagedKVCache:
    """Create kvctl's cache for `num_layers` attention layers; `sizes` are `SIZES`."""
    numbers = (
        num_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        int(RopeMode.NORMAL),
        float(rope_scale),
        float(config.rope_theta),
    )
    created = relax.call_pure_packed(
        "kvctl.cache.create_for_model",
        relax.ShapeExpr([*sizes, 0]),
        *[relax.prim_value(number) for number in numbers],
        relax.op.zeros((), dtype),
        ty_args=relax.AnyType(),
    )
    return PagedKVCache(_expr=created, _name="paged_kv_cache")
