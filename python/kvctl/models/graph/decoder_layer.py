"""One layer of a decoder: attention and feed-forward, as its configuration says."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.relax.frontend.nn import Module, Parameter, Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..checkpoints.config import DecoderConfig
from .kv_cache import attend_soft_capped
from .layers import Layers, QKParts


class DecoderStep:
    """What the layers of one forward share: the cache, and how its rows are rotated.

    Parameters
    ----------
    config : DecoderConfig
        The model.
    layers : Layers
        How its layers are made.
    cache : PagedKVCache
        The argument of the function.
    num_rows
        New tokens of the batch, symbolic or not.
    """

    def __init__(
        self, config: DecoderConfig, layers: Layers, cache: PagedKVCache, num_rows: Any
    ) -> None:
        self.cache = cache
        self._config, self._ops, self._num_rows = config, layers, num_rows
        self._positions: Tensor | None = None
        self._tables: dict[str, Tensor] = {}

    @property
    def positions(self) -> Tensor:
        """The positions of the rows, ``(rows,)`` int32."""
        if self._positions is None:
            self._positions = self.cache.get_query_positions(self._num_rows)
        return self._positions

    def rotate(self, qkv: Tensor, layer: int) -> Tensor:
        """Rotate q and k of ``(rows, heads, head_dim)``, unless the cache does it or nobody."""
        rotation = self._config.rotation(layer)
        if rotation is None or self._config.cache_rotates:
            return qkv
        if rotation not in self._tables:
            frequencies, factor = self._config.frequencies(rotation)
            self._tables[rotation] = self._ops.rope_table(self.positions, frequencies, factor)
        heads = self._config.num_attention_heads + self._config.num_key_value_heads
        return self._ops.rotate(qkv, self._tables[rotation], heads)


class NormWeight(Module):
    """The weight of an RMSNorm that is part of another operation."""

    def __init__(self, size: int, layers: Layers) -> None:
        super().__init__()
        self.weight = Parameter((size,), layers.dtype)


def make_norm(config: DecoderConfig, layers: Layers) -> Callable[[Tensor], Tensor]:
    """Make a norm of the residual stream."""
    make = layers.rms_norm if config.norm == "rms" else layers.layer_norm
    return make(config.hidden_size, config.rms_norm_eps)


class Attention(Module):
    """Fused projection, norm and rotation of q and k, attention on the cache, output."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.ops = config, layers
        dim = config.head_dim
        attended, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.qkv_proj = layers.linear(
            "qkv", config.hidden_size, config.num_qkv_heads * dim, bias=config.qkv_bias
        )
        self.o_proj = layers.linear("o", attended, config.hidden_size, bias=config.output_bias)
        self.parts = QKParts(attended, keys)
        if config.qk_norm is not None:
            per_head = config.qk_norm == "head"
            self.q_norm = NormWeight(dim if per_head else attended, layers)
            self.k_norm = NormWeight(dim if per_head else keys, layers)

    def forward(self, x: Tensor, residual: Tensor | None, step: DecoderStep, layer: int) -> Tensor:
        """``(b, s, hidden)``, perhaps another to add, and the step -> ``(b, s, hidden)``."""
        config, (b, s, _) = self.config, x.shape
        qkv = self.qkv_proj(x)
        if config.qk_norm is not None:
            q, k = self.q_norm.weight, self.k_norm.weight
            qkv = self.ops.qk_norm(qkv, q, k, self.parts, config.rms_norm_eps)
        if config.cache_rotates or config.rotation(layer) is None:
            shape = (b, s, config.num_qkv_heads, config.head_dim)
            qkv = op.reshape(qkv, shape)
        else:
            qkv = op.reshape(qkv, (b * s, config.num_qkv_heads, config.head_dim))
            qkv = step.rotate(qkv, layer)
            qkv = op.reshape(qkv, (b, s, config.num_qkv_heads, config.head_dim))
        heads, scale = config.num_attention_heads, config.sm_scale
        if config.attention_soft_cap is None:
            attended = step.cache.attention_with_fused_qkv(layer, qkv, heads, sm_scale=scale)
        else:
            cap = config.attention_soft_cap
            attended = attend_soft_capped(step.cache, layer, qkv, heads, scale, cap)
        return self.o_proj(op.reshape(attended, (b, s, -1)), residual)


class FeedForward(Module):
    """Two products with an activation between them, gated (both halves in one product) or not.

    Parameters
    ----------
    hidden, intermediate : int
        Widths outside and inside.
    layers : Layers
        How its layers are made.
    activation : str
        What is applied inside.
    gated : bool
        Whether the activated half is multiplied by another.
    bias : bool
        Whether its products have biases.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        layers: Layers,
        *,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if gated:
            self.gate_up_proj = layers.linear("gate_up", hidden, 2 * intermediate, bias=bias)
        else:
            self.up_proj = layers.linear("up", hidden, intermediate, bias=bias)
        self.down_proj = layers.linear("down", intermediate, hidden, bias=bias)
        self.ops, self.activation, self.gated = layers, activation, gated

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """``(b, s, hidden)``, perhaps another to add -> ``(b, s, hidden)``."""
        if self.gated:
            inside = self.ops.gated(self.gate_up_proj(x), self.activation)
        else:
            inside = self.ops.activate(self.up_proj(x), self.activation)
        return self.down_proj(inside, residual)


class DecoderLayer(Module):
    """One layer."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.ops = config, layers
        self.self_attn = Attention(config, layers)
        self.mlp = FeedForward(
            config.hidden_size,
            config.intermediate_size,
            layers,
            activation=config.activation,
            gated=config.gated_mlp,
            bias=config.mlp_bias,
        )
        self.before, self.after = (
            config.norm_placement in (place, "both") for place in ("before", "after")
        )
        if self.before:
            self.input_layernorm = make_norm(config, layers)
            self.post_attention_layernorm = make_norm(config, layers)
        if self.after:
            self.attention_output_norm = make_norm(config, layers)
            self.mlp_output_norm = make_norm(config, layers)

    def forward(self, x: Tensor, step: DecoderStep, layer: int) -> Tensor:
        """``(b, s, hidden)`` and the step -> ``(b, s, hidden)``."""
        source = x
        y = self.input_layernorm(x) if self.before else x
        # What is added as it stands is added in the product's own pass.
        plain = not self.after and self.config.residual_scale == 1.0
        attended = self.self_attn(y, x if plain else None, step, layer)
        if not plain:
            attended = self._add(x, attended, "attention_output_norm")
        x = attended
        y = source if self.config.parallel_residual else x
        y = self.post_attention_layernorm(y) if self.before else y
        out = self.mlp(y, x if plain else None)
        return out if plain else self._add(x, out, "mlp_output_norm")

    def _add(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        y = getattr(self, norm)(y) if self.after else y
        return self.ops.scale(y, self.config.residual_scale, x)
