"""Heads for TVM's compiler.

No layer joins two rows into a wider one: a product with a joined row is the sum of two products.
"""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..models.checkpoints.config import DecoderConfig
from ..models.graph.decoder import Embedding, scale_logits
from ..models.graph.decoder_layer import DecoderStep, FeedForward, make_norm
from ..models.graph.kv_cache import CreatesPagedCache, create_kvctl_cache
from ..models.graph.layers import Layers
from .config import HeadConfig


class HeadAttention(Module):
    """Attention of a head's layer over one row, or over two that stand for a joined one."""

    def __init__(self, config: DecoderConfig, layers: Layers, *, two: bool) -> None:
        super().__init__()
        self.config, self.ops = config, layers
        width, dim = config.hidden_size, config.head_dim
        outputs = config.num_qkv_heads * dim
        self.qkv_proj = layers.linear("qkv", width, outputs, bias=config.qkv_bias)
        if two:
            self.qkv_token = layers.linear("qkv", width, outputs)
        attended = config.num_attention_heads * dim
        self.o_proj = layers.linear("o", attended, width, bias=config.output_bias)

    def forward(
        self, x: Tensor, token: Tensor | None, residual: Tensor, cache: PagedKVCache
    ) -> Tensor:
        """``(1, n, width)`` each -> ``(1, n, width)``, the residual added."""
        config, (b, s, _) = self.config, x.shape
        qkv = self.qkv_proj(x, None if token is None else self.qkv_token(token))
        if config.cache_rotates:
            qkv = op.reshape(qkv, (b, s, config.num_qkv_heads, config.head_dim))
        else:
            step = DecoderStep(config, self.ops, cache, b * s)
            qkv = op.reshape(qkv, (b * s, config.num_qkv_heads, config.head_dim))
            qkv = op.reshape(step.rotate(qkv, 0), (b, s, config.num_qkv_heads, config.head_dim))
        heads = config.num_attention_heads
        attended = cache.attention_with_fused_qkv(0, qkv, heads, sm_scale=config.sm_scale)
        return self.o_proj(op.reshape(attended, (b, s, -1)), residual)


class EagleLayer(Module):
    """A head's decoder layer: EAGLE-1's, MTP's, or with norms of token and feature EAGLE-3's."""

    def __init__(self, config: HeadConfig, layers: Layers) -> None:
        super().__init__()
        shape = config.layer
        self.wide, self.norm_first = config.kind == "eagle3", config.norm_before_residual
        self.self_attn = HeadAttention(shape, layers, two=self.wide)
        if self.wide:
            self.hidden_norm = make_norm(shape, layers)
        self.reads_normed = config.kind != "eagle"
        if self.reads_normed:
            self.input_layernorm = make_norm(shape, layers)
        self.post_attention_layernorm = make_norm(shape, layers)
        self.mlp = FeedForward(
            shape.hidden_size,
            shape.intermediate_size,
            layers,
            activation=shape.activation,
            bias=shape.mlp_bias,
        )

    def forward(self, x: Tensor, token: Tensor | None, cache: PagedKVCache) -> Tensor:
        """Run it on ``(1, n, width)``; `token` are EAGLE-3's embeddings."""
        if token is None:
            normed = self.input_layernorm(x) if self.reads_normed else x
            x = self.self_attn(normed, None, x, cache)
        else:
            normed = self.hidden_norm(x)
            residual = normed if self.norm_first else x
            x = self.self_attn(normed, self.input_layernorm(token), residual, cache)
        return self.mlp(self.post_attention_layernorm(x), x)


class Head(CreatesPagedCache, Module):
    """What the libraries of all heads have: a cache, which Medusa's heads do not use."""

    def __init__(self, config: HeadConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.ops = config, layers

    def create_paged_cache(self, sizes: list[tirx.Var]) -> PagedKVCache:
        """Create the head's cache, of one layer."""
        shape = self.config.layer
        return create_kvctl_cache(
            shape,
            1,
            sizes,
            self.ops.dtype,
            rope_scale=shape.rope_scale,
            rotates=shape.cache_rotates,
        )


class EagleHead(Head):
    """The functions of a library of EAGLE's, or of an MTP module: features, a step, logits."""

    def __init__(self, config: HeadConfig, layers: Layers) -> None:
        super().__init__(config, layers)
        shape, target = config.layer, config.target
        width, self.wide = shape.hidden_size, config.kind == "eagle3"
        self.embed_tokens = Embedding(target.vocab_size, width, layers)
        self.layer = EagleLayer(config, layers)
        if self.wide:
            self.fc = layers.linear("fc", 3 * target.hidden_size, width)
            if config.norm_before_fc:
                self.input_norm = layers.rms_norm(3 * target.hidden_size, shape.rms_norm_eps)
            self.norm = make_norm(shape, layers)
        else:
            self.feature_norm = make_norm(target, layers)
            self.fc = layers.linear("fc", width, width)
            self.fc_token = layers.linear("fc", width, width, bias=config.fc_bias)
        if config.kind == "mtp":
            self.hidden_norm = make_norm(shape, layers)
            self.token_norm = make_norm(shape, layers)
            self.norm = make_norm(shape, layers)
        self.lm_head = layers.linear("lm_head", width, config.vocab_size)

    def head_features(self, hidden_states: Tensor) -> Tensor:
        """``(n, layers, target width)`` -> ``(n, width)``."""
        n, layers, width = hidden_states.shape
        rows = op.reshape(hidden_states, (n, layers * width))
        if self.config.norm_before_fc:
            rows = self.input_norm(rows)
        return self.fc(rows) if self.wide else self.feature_norm(rows)

    def head_step(self, input_ids: Tensor, features: Tensor, paged_kv_cache: PagedKVCache) -> Any:
        """``(n,)`` int32 and ``(n, width)`` -> ``(n, width)``, the next features."""
        n, width = features.shape
        token = self.ops.take_rows(self.embed_tokens.weight, input_ids)
        if self.config.target.embedding_scale != 1.0:
            token = self.ops.scale(token, self.config.target.embedding_scale)
        token, x = (op.reshape(rows, (1, n, width)) for rows in (token, features))
        if self.wide:
            x = self.layer(x, token, paged_kv_cache)
        else:
            if self.config.kind == "mtp":
                token, x = self.token_norm(token), self.hidden_norm(x)
            x = self.layer(self.fc(x, self.fc_token(token)), None, paged_kv_cache)
            if self.config.gives_normed:
                x = self.norm(x)
        return op.reshape(x, (n, width)), paged_kv_cache

    def head_logits(self, features: Tensor) -> Tensor:
        """``(n, width)`` -> ``(n, vocab)`` float32."""
        if self.wide:
            return _float32(self.lm_head(self.norm(features)))
        if self.config.kind == "mtp" and not self.config.gives_normed:
            features = self.norm(features)
        return scale_logits(self.config.target, self.ops, self.lm_head(features))

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return the arguments of the functions that compute."""
        dtype, width = self.ops.dtype, self.config.layer.hidden_size
        layers, target = len(self.config.hidden_layers), self.config.target.hidden_size
        return {
            "head_features": {"hidden_states": nn.spec.Tensor(["n", layers, target], dtype)},
            "head_step": {
                "input_ids": nn.spec.Tensor(["n"], "int32"),
                "features": nn.spec.Tensor(["n", width], dtype),
                "paged_kv_cache": nn.spec.Object(object_type=PagedKVCache),
            },
            "head_logits": {"features": nn.spec.Tensor(["n", width], dtype)},
        }


class ResBlock(Module):
    """A row plus the SiLU of a layer of it."""

    def __init__(self, width: int, layers: Layers) -> None:
        super().__init__()
        self.linear = layers.linear("block", width, width, bias=True)
        self.ops = layers

    def forward(self, x: Tensor) -> Tensor:
        """``(n, width)`` -> ``(n, width)``."""
        return self.ops.scale(self.ops.activate(self.linear(x), "silu"), 1.0, x)


class MedusaHead(Head):
    """The function of a library of Medusa's: logits of all heads."""

    def __init__(self, config: HeadConfig, layers: Layers) -> None:
        super().__init__(config, layers)
        width = config.target.hidden_size
        self.feature_norm = make_norm(config.target, layers)
        self.blocks = nn.ModuleList(
            [ResBlock(width, layers) for _ in range(config.num_heads * config.num_blocks)]
        )
        self.lm_heads = nn.ModuleList(
            [layers.linear("lm_head", width, config.vocab_size) for _ in range(config.num_heads)]
        )

    def head_logits(self, hidden_states: Tensor) -> Any:
        """``(n, 1, width)`` -> ``(n, vocab)`` float32 of each head."""
        n, _, width = hidden_states.shape
        rows = self.feature_norm(op.reshape(hidden_states, (n, width)))
        logits = []
        for head in range(self.config.num_heads):
            x = rows
            for block in range(self.config.num_blocks):
                x = self.blocks[head * self.config.num_blocks + block](x)
            logits.append(_float32(self.lm_heads[head](x)))
        return tuple(logits)

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return the arguments of the function that computes."""
        shape = ["n", 1, self.config.target.hidden_size]
        return {"head_logits": {"hidden_states": nn.spec.Tensor(shape, self.ops.dtype)}}


def _float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == "float32" else logits.astype("float32")
