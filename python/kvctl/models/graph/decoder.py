"""A decoder for TVM's compiler, exporting the function names of MLC-LLM."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

from ..checkpoints.config import DecoderConfig
from .decoder_layer import DecoderLayer, DecoderStep, make_norm
from .kv_cache import SIZES, CreatesPagedCache, create_kvctl_cache
from .layers import Layers
from .logit_mask import make_logit_mask
from .sharded_layers import make_sharded_mask
from .tensor_parallel import TensorParallel


class Embedding(Module):
    """A table that ids are looked up in."""

    def __init__(self, rows: int, hidden: int, layers: Layers) -> None:
        super().__init__()
        self.weight = Parameter((rows, hidden), layers.dtype)


def scale_logits(config: DecoderConfig, ops: Layers, logits: Tensor) -> Tensor:
    """Return what an output layer gave as float32 logits, scaled and capped as the model does."""
    if config.logit_scale != 1.0:
        logits = ops.scale(logits, config.logit_scale)
    logits = logits if logits.dtype == "float32" else logits.astype("float32")
    return logits if config.logit_soft_cap is None else ops.soft_cap(logits, config.logit_soft_cap)


class Decoder(Module):
    """Embedding, layers, last norm."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.ops = config, layers
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, layers)
        if config.learned_positions:
            self.embed_positions = Embedding(config.learned_positions, config.hidden_size, layers)
        self.layers = nn.ModuleList(
            [DecoderLayer(config, layers) for _ in range(config.num_hidden_layers)]
        )
        self.norm = make_norm(config, layers)

    def forward(self, x: Tensor, cache: PagedKVCache) -> Tensor:
        """``(b, s, hidden)`` and the cache -> ``(b, s, hidden)``, normalised."""
        return self.states(x, cache, range(self.config.num_hidden_layers), ())[-1]

    def states(
        self, x: Tensor, cache: PagedKVCache, run: range, layers: Sequence[int]
    ) -> list[Tensor]:
        """Run some layers; returns the outputs of `layers`, and last what the output layer reads.

        `x` is what enters the first layer that runs.
        """
        b, s, hidden = x.shape
        step = DecoderStep(self.config, self.ops, cache, b * s)
        if self.config.learned_positions and run.start == 0:
            rows = self.ops.take_rows(self.embed_positions.weight, step.positions)
            x = self.ops.scale(x, 1.0, op.reshape(rows, (b, s, hidden)))
        outputs = []
        for index, layer in enumerate(self.layers):
            if index not in run:
                continue
            x = layer(x, step, index)
            if index in layers:
                outputs.append(x)
        return [*outputs, self.norm(x)]


class DecoderForCausalLM(CreatesPagedCache, Module):
    """The functions of a model library; ``functions`` gives their arguments.

    A tied embedding is two parameters here, a plain table to take rows from and a packed weight to
    multiply by; on disk they are the same bytes. The logits of `unused` ids are minus infinity.
    With `parallel`, whose share of the heads `config` has, logits are those of one worker's ids.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Layers,
        *,
        cache: str,
        target: Any,
        unused: Sequence[int] = (),
        hidden_layers: Sequence[int] | None = None,
        exit_layers: Sequence[int] = (),
        parallel: TensorParallel | None = None,
    ) -> None:
        super().__init__()
        self.hidden_layers, self.exit_layers = hidden_layers, exit_layers
        if cache == "tvm" and config.attention_soft_cap is not None:
            raise ValueError("soft caps of scores need kvctl's cache: choose cache='kvctl'")
        self.config, self.ops, self.cache, self.target = config, layers, cache, target
        self.model = Decoder(config, layers)
        columns = config.vocab_size if parallel is None else parallel.vocab
        self.lm_head = layers.linear("lm_head", config.hidden_size, columns)
        if parallel is None:
            self.mask = make_logit_mask(config.vocab_size, unused)
        else:
            self.mask = make_sharded_mask(self, parallel, unused)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.mask(scale_logits(self.config, self.ops, self.lm_head(hidden)))

    def embed(self, input_ids: Tensor) -> Tensor:
        """``(n,)`` int32 -> ``(n, hidden)``."""
        rows = self.ops.take_rows(self.model.embed_tokens.weight, input_ids)
        scale = self.config.embedding_scale
        return rows if scale == 1.0 else self.ops.scale(rows, scale)

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

    def batch_verify_to_hidden_states(
        self, input_embeds: Tensor, paged_kv_cache: PagedKVCache
    ) -> Any:
        """``(1, n, hidden)`` -> ``(n, layers + 1, hidden)``.

        These are the outputs of `hidden_layers`, and last what the output layer reads.
        """
        _, n, width = input_embeds.shape
        every = range(self.config.num_hidden_layers)
        states = self.model.states(input_embeds, paged_kv_cache, every, self.hidden_layers or ())
        columns = [op.reshape(state, (n, 1, width)) for state in states]
        stacked = columns[0] if len(columns) == 1 else op.concat(columns, 1)
        return stacked, paged_kv_cache

    def batch_verify_until(self, layers: int) -> Any:
        """Return the function that runs the first so many layers, and then the last norm.

        ``(1, n, hidden)`` -> what the output layer reads and what the next layer would read,
        ``(1, n, hidden)`` each.
        """

        def run(input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> Any:
            outputs = self.model.states(input_embeds, paged_kv_cache, range(layers), (layers - 1,))
            return outputs[1], outputs[0], paged_kv_cache

        return run

    def batch_verify_from(self, layers: int) -> Any:
        """Return the function that runs the other layers for rows that ran the first so many.

        ``(1, n, hidden)``, what the next layer reads -> ``(1, n, hidden)``, what the output layer
        reads.
        """

        def run(input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> Any:
            rest = range(layers, self.config.num_hidden_layers)
            return self.model.states(input_embeds, paged_kv_cache, rest, ())[-1], paged_kv_cache

        return run

    def get_logits(self, hidden_states: Tensor) -> Tensor:
        """``(n, hidden)``, what the output layer reads -> ``(n, vocab)``."""
        return self._logits(hidden_states)

    def create_paged_cache(self, sizes: list[tirx.Var]) -> PagedKVCache:
        """Create the cache: kvctl's, or TVM's with kernels compiled into the library."""
        config = self.config
        if self.cache == "kvctl":
            return create_kvctl_cache(
                config,
                config.num_hidden_layers,
                sizes,
                self.ops.dtype,
                rope_scale=config.rope_scale,
                rotates=config.cache_rotates,
                layer_windows=config.layer_windows,
            )
        windows = set(config.layer_windows) - {0}
        if len(windows) > 1:
            raise ValueError(f"TVM's cache takes one size of windows, not {sorted(windows)}")
        return TIRPagedKVCache(
            attn_kind=["mha_sliding" if window else "mha" for window in config.layer_windows]
            if windows
            else "mha",
            **dict(zip(SIZES, sizes, strict=True)),
            layer_partition=relax.ShapeExpr([0, config.num_hidden_layers]),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            qk_head_dim=config.head_dim,
            v_head_dim=config.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL if config.cache_rotates else RopeMode.NONE,
            rope_scale=config.rope_scale,
            rope_theta=config.rope_theta,
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=config.head_dim,
            enable_disaggregation=False,
            dtype=self.ops.dtype,
            target=self.target,
            **({"layer_sliding_window_size": windows.pop()} if windows else {}),
        )

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return the arguments of the functions that compute, by their names."""
        dtype, hidden = self.ops.dtype, self.config.hidden_size
        cache = nn.spec.Object(object_type=PagedKVCache)

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
        every_row = functions["batch_verify"]
        if self.hidden_layers is not None:
            functions["batch_verify_to_hidden_states"] = every_row
        for layers in self.exit_layers:
            for part in ("until", "from"):
                name = f"batch_verify_{part}_{layers}"
                setattr(self, name, getattr(self, f"batch_verify_{part}")(layers))
                functions[name] = every_row
        if self.hidden_layers is not None or self.exit_layers:
            functions["get_logits"] = {"hidden_states": nn.spec.Tensor(["seq_len", hidden], dtype)}
        return functions
