"""A gated delta net for TVM's compiler: layers that keep a matrix per head instead of a KV cache.

Gated Delta Networks (arXiv:2412.06464). Its library exports MLC-LLM's function names; where a
transformer's functions take a KV cache, these take a recurrent state.
"""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op

from .decoder import Embedding
from .decoder_layer import FeedForward
from .delta_kernels import gated_delta, gated_norm, short_conv
from .layers import Layers
from .rnn_state import RecurrentStep, RNNState, StateSpec, create_rnn_state


@dataclass(frozen=True)
class GatedDeltaNetConfig:
    """The shape of a gated delta net.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_heads: int
    key_dim: int
    value_dim: int
    vocab_size: int
    conv_width: int = 4
    rms_norm_eps: float = 1e-5
    context_window_size: int = 2048

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 2 if field.name == "conv_width" else 1
            if field.type == "int" and (not isinstance(value, int) or value < least):
                raise ValueError(f"{field.name} must be an integer from {least}, not {value!r}")

    @property
    def conv_channels(self) -> int:
        """Columns that go through the short convolution: q, k and v of every head."""
        return self.num_heads * (2 * self.key_dim + self.value_dim)

    @property
    def proj_width(self) -> int:
        """Columns of the input projection: q, k, v, then the gate z, then b and a of each head."""
        return self.conv_channels + self.num_heads * (self.value_dim + 2)

    @property
    def state_specs(self) -> list[StateSpec]:
        """The states of a recurrent layer: the heads' matrices, and the last inputs convolved."""
        return [
            StateSpec((self.num_heads, self.key_dim, self.value_dim)),
            StateSpec((self.conv_width - 1, self.conv_channels)),
        ]

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer is recurrent."""
        return True

    @property
    def num_recurrent_layers(self) -> int:
        """Layers that have a recurrent state."""
        return sum(map(self.is_recurrent, range(self.num_hidden_layers)))


class GatedDeltaNet(Module):
    """Projection, short convolution, gated delta rule, gated norm, output plus residual."""

    def __init__(self, config: GatedDeltaNetConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        values = config.num_heads * config.value_dim
        self.in_proj = layers.linear("delta_in", config.hidden_size, config.proj_width)
        self.out_proj = layers.linear("delta_out", values, config.hidden_size)
        self.conv = Parameter((config.conv_width, config.conv_channels), "float32")
        self.a_log = Parameter((config.num_heads,), "float32")
        self.dt_bias = Parameter((config.num_heads,), "float32")
        self.norm = Parameter((config.value_dim,), "float32")

    def forward(self, x: Tensor, residual: Tensor, step: RecurrentStep, layer: int) -> Tensor:
        """``(b, s, hidden)`` twice, the step, the number of the layer -> ``(b, s, hidden)``."""
        config, (b, s, _) = self.config, x.shape
        n, width, heads = b * s, config.proj_width, config.num_heads
        matrix, window = config.state_specs

        def rows(*shape: int) -> Tensor:
            return Tensor.placeholder([n, *shape], "float32")

        proj = op.reshape(self.in_proj(x), (n, width))
        qkv, inputs = op.tensor_ir_op(
            short_conv(width, config.conv_channels, config.conv_width),
            "short_conv",
            [proj, step.roots(layer, 1, window), step.rows, self.conv],
            [rows(config.conv_channels), step.entries(window)],
        )
        step.set(layer, 1, inputs)
        o, states = op.tensor_ir_op(
            gated_delta(width, heads, config.key_dim, config.value_dim),
            "gated_delta",
            [qkv, proj, step.roots(layer, 0, matrix), step.rows, self.a_log, self.dt_bias],
            [rows(heads, config.value_dim), step.entries(matrix)],
        )
        step.set(layer, 0, states)
        out = op.tensor_ir_op(
            gated_norm(width, config.conv_channels, heads, config.value_dim, config.rms_norm_eps),
            "gated_norm",
            [o, proj, self.norm],
            rows(heads * config.value_dim),
        )
        return self.out_proj(op.reshape(out, (b, s, heads * config.value_dim)), residual)


class DeltaLayer(Module):
    """One recurrent layer and its feed-forward half."""

    def __init__(self, config: GatedDeltaNetConfig, layers: Layers) -> None:
        super().__init__()
        self.delta = GatedDeltaNet(config, layers)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, layers)
        self.input_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: RecurrentStep, layer: int) -> Tensor:
        """``(b, s, hidden)`` -> ``(b, s, hidden)``."""
        x = self.delta(self.input_layernorm(x), x, step, layer)
        return self.mlp(self.post_attention_layernorm(x), x)


class RecurrentForCausalLM(Module):
    """The functions of a model library with recurrent layers; ``functions`` lists them.

    Parameters
    ----------
    config : GatedDeltaNetConfig
        The model's shape.
    layers : Layers
        How linear layers and norms are made.
    emit_steps : bool
        Whether ``batch_verify`` hands over the state after every token. Prefill and decode never
        do: their tokens are known to stay.
    """

    caches: tuple[str, ...] = ("rnn_state",)
    """The arguments of the functions that hold what sequences remember, in order."""

    def __init__(
        self, config: GatedDeltaNetConfig, layers: Layers, *, emit_steps: bool = True
    ) -> None:
        super().__init__()
        self.config, self.ops, self.emit_steps = config, layers, emit_steps
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, layers)
        self.layers = nn.ModuleList(
            [self.make_layer(index, layers) for index in range(config.num_hidden_layers)]
        )
        self.norm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = layers.linear("lm_head", config.hidden_size, config.vocab_size)

    def make_layer(self, index: int, layers: Layers) -> Module:
        """Make layer `index`."""
        return DeltaLayer(self.config, layers)

    def apply_layer(
        self, index: int, x: Tensor, caches: tuple[Any, ...], step: RecurrentStep
    ) -> Tensor:
        """Run layer `index`."""
        return self.layers[index](x, step, index)

    def _hidden(self, x: Tensor, caches: tuple[Any, ...], *, emit_steps: bool) -> Any:
        """Run the model; returns the hidden states and the caches to return."""
        b, s, _ = x.shape
        step = caches[-1].step(b * s, emit_steps=emit_steps)
        for index in range(self.config.num_hidden_layers):
            x = self.apply_layer(index, x, caches, step)
        return self.norm(x), (*caches[:-1], step.result())

    def embed(self, input_ids: Tensor) -> Tensor:
        """``(n,)`` int32 -> ``(n, hidden)``."""
        return self.ops.take_rows(self.embed_tokens.weight, input_ids)

    def batch_prefill(self, input_embeds: Tensor, logit_positions: Tensor, *caches: Any) -> Any:
        """``(1, n, hidden)`` and rows ``(b,)`` int32 -> logits ``(1, b, vocab)`` of those rows."""
        hidden, after = self._hidden(input_embeds, caches, emit_steps=False)
        _, n, width = hidden.shape
        rows = self.ops.take_rows(op.reshape(hidden, (n, width)), logit_positions)
        return (self.lm_head(op.reshape(rows, (1, -1, width))), *after)

    def batch_decode(self, input_embeds: Tensor, *caches: Any) -> Any:
        """``(b, 1, hidden)`` -> logits ``(b, 1, vocab)``."""
        hidden, after = self._hidden(input_embeds, caches, emit_steps=False)
        return (self.lm_head(hidden), *after)

    def batch_verify(self, input_embeds: Tensor, *caches: Any) -> Any:
        """``(1, n, hidden)`` -> logits ``(1, n, vocab)`` of every row."""
        hidden, after = self._hidden(input_embeds, caches, emit_steps=self.emit_steps)
        return (self.lm_head(hidden), *after)

    def create_rnn_state(self, max_batch_size: tirx.Var, max_history_size: tirx.Var) -> RNNState:
        """Create the recurrent state. `max_history_size` is TVM's: it counts the present state."""
        config = self.config
        return create_rnn_state(
            config.num_recurrent_layers, config.state_specs, max_batch_size, max_history_size
        )

    def cache_spec(self, name: str) -> Any:
        """Return the type of a cache argument."""
        return nn.spec.Object(object_type=RNNState)

    def functions(self) -> dict[str, Any]:
        """Return the functions' signatures as TVM's exporter takes them."""
        hidden, dtype = self.config.hidden_size, self.ops.dtype
        caches = {name: self.cache_spec(name) for name in self.caches}

        def method(function: Any, arguments: dict[str, Any], params: str = "packed") -> Any:
            names, specs = list(arguments), list(arguments.values())
            return nn.spec.MethodSpec(function, names, specs, params, "none")

        def embeds(*shape: Any) -> dict[str, Any]:
            return {"input_embeds": nn.spec.Tensor([*shape, hidden], dtype)}

        rows = {"logit_positions": nn.spec.Tensor(["batch_size"], "int32")}
        sizes = {name: nn.spec.Int() for name in ("max_batch_size", "max_history_size")}
        return {
            "embed": method(self.embed, {"input_ids": nn.spec.Tensor(["seq_len"], "int32")}),
            "batch_prefill": method(self.batch_prefill, {**embeds(1, "seq_len"), **rows, **caches}),
            "batch_decode": method(self.batch_decode, {**embeds("batch_size", 1), **caches}),
            "batch_verify": method(self.batch_verify, {**embeds(1, "seq_len"), **caches}),
            "create_rnn_state": method(self.create_rnn_state, sizes, "none"),
        }
