"""The calls of a model's graph on kvctl's paged KV cache that TVM's class lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode

SIZES = (
    "max_batch_size",
    "max_total_seq_len",
    "prefill_chunk_size",
    "page_size",
    "support_sliding_window",
)
"""The arguments of ``create_tir_paged_kv_cache``, as MLC-LLM passes them."""


class CreatesPagedCache:
    """A graph whose library has MLC-LLM's function that creates a paged cache."""

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> PagedKVCache:
        """Create the cache; the names of the arguments are `SIZES`."""
        return self.create_paged_cache(
            [
                max_batch_size,
                max_total_seq_len,
                prefill_chunk_size,
                page_size,
                support_sliding_window,
            ]
        )

    def create_paged_cache(self, sizes: list[tirx.Var]) -> PagedKVCache:
        """Create the cache of this graph; `sizes` are `SIZES`."""
        raise NotImplementedError


def create_kvctl_cache(
    config: Any,
    num_layers: int,
    sizes: list[tirx.Var],
    dtype: str,
    *,
    rope_scale: float = 1.0,
    rotates: bool = True,
    layer_windows: Sequence[int] = (),
) -> PagedKVCache:
    """Create kvctl's cache for `num_layers` attention layers; `sizes` are `SIZES`.

    `rotates` says whether the cache applies RoPE; `layer_windows` names every layer, or none.
    """
    numbers = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        int(RopeMode.NORMAL if rotates else RopeMode.NONE),
        float(rope_scale),
        float(config.rope_theta),
    )
    windows = [relax.ShapeExpr(list(layer_windows))] if layer_windows else []
    created = relax.call_pure_packed(
        f"kvctl.cache.{'create_with_windows' if windows else 'create_for_model'}",
        relax.ShapeExpr([*sizes, 0]),
        relax.prim_value(num_layers),
        *windows,
        *[relax.prim_value(number) for number in numbers],
        relax.op.zeros((), dtype),
        ty_args=relax.AnyType(),
    )
    return PagedKVCache(_expr=created, _name="paged_kv_cache")


def attend_soft_capped(
    cache: PagedKVCache, layer: int, qkv: Tensor, num_heads: int, sm_scale: float, cap: float
) -> Tensor:
    """Attend with scores of ``cap * tanh(score / cap)``; needs kvctl's cache.

    ``(b, s, all heads, head_dim)`` -> ``(b, s, num_heads, head_dim)``.
    """
    b, s, heads, dim = qkv.shape
    rows = op.reshape(qkv, (b * s, heads, dim))
    call = relax.call_dps_packed(
        "kvctl.model.attention",
        [
            cache._expr,
            relax.prim_value(layer),
            rows._expr,
            relax.prim_value(float(sm_scale)),
            relax.prim_value(float(cap)),
        ],
        out_ty=relax.TensorType((b * s, num_heads, dim), qkv.dtype),
    )
    attended = Tensor(_expr=relax.BlockBuilder.current().emit(call))
    return op.reshape(attended, (b, s, num_heads, dim))
