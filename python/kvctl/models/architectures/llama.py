"""A Llama model for TVM's compiler, exporting the function names of MLC-LLM."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

from ..checkpoints.config import LlamaConfig
from .kv_cache import SIZES, create_kvctl_cache
from .layers import KvctlLayers, Layers, ParamSpec, PlainLayers, make_logit_mask


class Sizes(Protocol):
    """The fields of a configuration that layers shared with other models need."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width inside the feed-forward layer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        ...


class Attention(Module):
    """Fused projection, attention on the cache (which applies RoPE), output plus residual."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        attended = config.num_attention_heads * config.head_dim
        self.qkv_proj = layers.linear(
            "qkv", config.hidden_size, config.num_qkv_heads * config.head_dim
        )
        self.o_proj = layers.linear("o", attended, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        """``(b, s, hidden)`` twice and the cache -> ``(b, s, hidden)``."""
        config, (b, s, _) = self.config, x.shape
        qkv = op.reshape(self.qkv_proj(x), (b, s, config.num_qkv_heads, config.head_dim))
        attended = cache.attention_with_fused_qkv(
            layer, qkv, config.num_attention_heads, sm_scale=config.head_dim**-0.5
        )
        return self.o_proj(op.reshape(attended, (b, s, -1)), residual)


class FeedForward(Module):
    """SwiGLU with gate and up projection in one product, plus residual."""

    def __init__(self, config: Sizes, layers: Layers) -> None:
        super().__init__()
        self.gate_up_proj = layers.linear(
            "gate_up", config.hidden_size, 2 * config.intermediate_size
        )
        self.down_proj = layers.linear("down", config.intermediate_size, config.hidden_size)
        self.silu_mul = layers.silu_mul

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``(b, s, hidden)`` twice -> ``(b, s, hidden)``."""
        return self.down_proj(self.silu_mul(self.gate_up_proj(x)), residual)


class DecoderLayer(Module):
    """One layer."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        super().__init__()
        self.self_attn = Attention(config, layers)
        self.mlp = FeedForward(config, layers)
        self.input_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        """``(b, s, hidden)`` and the cache -> ``(b, s, hidden)``."""
        x = self.self_attn(self.input_layernorm(x), x, cache, layer)
        return self.mlp(self.post_attention_layernorm(x), x)


class Embedding(Module):
    """The table that token ids are looked up in."""

    def __init__(self, config: Sizes, layers: Layers) -> None:
        super().__init__()
        self.weight = Parameter((config.vocab_size, config.hidden_size), layers.dtype)


class LlamaModel(Module):
    """Embedding, layers, last norm."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config, layers)
        self.layers = nn.ModuleList(
            [DecoderLayer(config, layers) for _ in range(config.num_hidden_layers)]
        )
        self.norm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cache: PagedKVCache) -> Tensor:
        """``(b, s, hidden)`` and the cache -> ``(b, s, hidden)``, normalised."""
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index)
        return self.norm(x)


class LlamaForCausalLM(Module):
    """The functions of a model library; ``spec`` gives their signatures.

    A tied embedding is two parameters here, a plain table to take rows from and a packed weight to
    multiply by; on disk they are the same bytes. The logits of `unused` ids are minus infinity.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layers: Layers,
        *,
        cache: str,
        target: Any,
        unused: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.config, self.ops, self.cache, self.target = config, layers, cache, target
        self.model = LlamaModel(config, layers)
        self.lm_head = layers.linear("lm_head", config.hidden_size, config.vocab_size)
        self.mask = make_logit_mask(config.vocab_size, unused)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        return self.mask(logits if logits.dtype == "float32" else logits.astype("float32"))

    def embed(self, input_ids: Tensor) -> Tensor:
        """``(n,)`` int32 -> ``(n, hidden)``."""
        return self.ops.take_rows(self.model.embed_tokens.weight, input_ids)

    def batch_prefill(
        self, input_embeds: Tensor, logit_positions: Tensor, paged_kv_cache: PagedKVCache
    ) -> Any:
        """``(1, n, hidden)`` and rows ``(b,)`` int32 -> logits ``(1, b, vocab)`` of those rows."""
        hidden = self.model(input_embeds, paged_kv_cache)
        _, n, width = hidden.shape
        rows = self.ops.take_rows(op.reshape(hidden, (n, width)), logit_positions)
        return self._logits(op.reshape(rows, (1, -1, width))), paged_kv_cache

    def batch_decode(self, input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> Any:
        """``(b, 1, hidden)`` -> logits ``(b, 1, vocab)``."""
        return self._logits(self.model(input_embeds, paged_kv_cache)), paged_kv_cache

    def batch_verify(self, input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> Any:
        """``(1, n, hidden)`` -> logits ``(1, n, vocab)`` of every row."""
        return self._logits(self.model(input_embeds, paged_kv_cache)), paged_kv_cache

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> PagedKVCache:
        """Create the cache: kvctl's, or TVM's with kernels compiled into the library."""
        config = self.config
        if self.cache == "kvctl":
            sizes = [
                max_batch_size,
                max_total_seq_len,
                prefill_chunk_size,
                page_size,
                support_sliding_window,
            ]
            return create_kvctl_cache(
                config,
                config.num_hidden_layers,
                sizes,
                self.ops.dtype,
                rope_scale=config.rope_scale,
            )
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            support_sliding_window=support_sliding_window,
            layer_partition=relax.ShapeExpr([0, config.num_hidden_layers]),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            qk_head_dim=config.head_dim,
            v_head_dim=config.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=config.rope_scale,
            rope_theta=config.rope_theta,
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=config.head_dim,
            enable_disaggregation=False,
            dtype=self.ops.dtype,
            target=self.target,
        )

    def spec(self) -> Any:
        """Return the functions' signatures as TVM's exporter takes them."""
        dtype, hidden = self.ops.dtype, self.config.hidden_size
        cache = nn.spec.Object(object_type=PagedKVCache)
        packed = {"param_mode": "packed", "effect_mode": "none"}

        def embeds(*shape: Any) -> Any:
            return nn.spec.Tensor([*shape, hidden], dtype)

        functions = {
            "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32")},
            "batch_prefill": {
                "input_embeds": embeds(1, "seq_len"),
                "logit_positions": nn.spec.Tensor(["batch_size"], "int32"),
                "paged_kv_cache": cache,
            },
            "batch_decode": {"input_embeds": embeds("batch_size", 1), "paged_kv_cache": cache},
            "batch_verify": {"input_embeds": embeds(1, "seq_len"), "paged_kv_cache": cache},
        }
        spec: dict[str, Any] = {
            name: {**arguments, "$": dict(packed)} for name, arguments in functions.items()
        }
        spec["create_tir_paged_kv_cache"] = {
            **dict.fromkeys(SIZES, int),
            "$": {"param_mode": "none", "effect_mode": "none"},
        }
        return nn.spec.ModuleSpec.from_raw(spec, self)


def export(
    config: LlamaConfig,
    *,
    dtype: str = "float32",
    cache: str = "kvctl",
    target: Any = None,
    unused: Sequence[int] = (),
) -> tuple[tvm.IRModule, list[ParamSpec]]:
    """Build the graph of a model.

    Parameters
    ----------
    config : LlamaConfig
        The model's shape.
    dtype : str
        On the CPU what the linear weights are packed as, "float32" or "bfloat16" (activations are
        float32); elsewhere the type of everything.
    cache : str
        "kvctl", or "tvm" for TVM's own cache (its kernels are compiled into the library).
    target : tvm.target.Target, optional
        What the graph will be compiled for; by default this machine's CPU.
    unused : sequence of int
        Ids that are no tokens, padding of the output layer: their logits are minus infinity, so
        that nothing ever chooses them.

    Returns
    -------
    module, params
        MLC-LLM's functions by their names, and the parameters in the order in which they take them.

    Raises
    ------
    ValueError
        If `dtype` or `cache` is not one of those.
    """
    if cache not in ("kvctl", "tvm"):
        raise ValueError(f"cache must be 'kvctl' or 'tvm', not '{cache}'")
    target = tvm.target.Target("llvm") if target is None else target
    on_cpu = target.kind.name == "llvm"
    layers: Layers = KvctlLayers(dtype) if on_cpu else PlainLayers(dtype)
    model = LlamaForCausalLM(config, layers, cache=cache, target=target, unused=unused)
    module, params = model.export_tvm(model.spec())
    return module, [
        ParamSpec(
            name,
            tuple(int(d) for d in param.attrs.get("plain_shape", param.shape)),
            "float32" if on_cpu else dtype,
            param.attrs.get("packed"),
        )
        for name, param in params
    ]
