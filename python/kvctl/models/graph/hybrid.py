"""A hybrid for TVM's compiler: gated delta layers, and among them some that attend to a KV cache.

Its functions take both, the paged KV cache and then the recurrent state.
"""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Tensor
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from ..checkpoints.config import DecoderConfig
from .decoder_layer import DecoderLayer, DecoderStep
from .gated_delta_net import DeltaLayer, GatedDeltaNetConfig, RecurrentForCausalLM
from .kv_cache import SIZES, CreatesPagedCache, create_kvctl_cache
from .layers import Layers
from .rnn_state import RecurrentStep


@dataclass(frozen=True)
class HybridConfig(GatedDeltaNetConfig):
    """The shape of a hybrid: the last of every `attention_every` layers attends."""

    attention_every: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    rope_theta: float = 10000.0

    @property
    def attention(self) -> DecoderConfig:
        """The shape of an attention layer."""
        return DecoderConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_attention_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            context_window_size=self.context_window_size,
        )

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer is recurrent."""
        return layer % self.attention_every != self.attention_every - 1

    def index_of(self, layer: int) -> int:
        """Return the number of a layer among those of its kind, which is how caches number them."""
        kind = self.is_recurrent(layer)
        return sum(self.is_recurrent(earlier) == kind for earlier in range(layer))

    @property
    def num_attention_layers(self) -> int:
        """Layers that have a KV cache."""
        return self.num_hidden_layers - self.num_recurrent_layers


class HybridForCausalLM(CreatesPagedCache, RecurrentForCausalLM):
    """See `RecurrentForCausalLM`."""

    config: HybridConfig
    caches = ("paged_kv_cache", "rnn_state")

    def make_layer(self, index: int, layers: Layers) -> Module:
        """Make layer `index`."""
        if self.config.is_recurrent(index):
            return DeltaLayer(self.config, layers)
        return DecoderLayer(self.config.attention, layers)

    def apply_layer(
        self, index: int, x: Tensor, caches: tuple[Any, ...], step: RecurrentStep
    ) -> Tensor:
        """Run layer `index`."""
        number = self.config.index_of(index)
        if self.config.is_recurrent(index):
            return self.layers[index](x, step, number)
        b, s, _ = x.shape
        memory = DecoderStep(self.config.attention, self.ops, caches[0], b * s)
        return self.layers[index](x, memory, number)

    def create_paged_cache(self, sizes: list[tirx.Var]) -> PagedKVCache:
        """Create the cache of the attention layers."""
        layers = self.config.num_attention_layers
        return create_kvctl_cache(self.config, layers, sizes, self.ops.dtype)

    def cache_spec(self, name: str) -> Any:
        """Return the type of a cache argument."""
        if name == "paged_kv_cache":
            return nn.spec.Object(object_type=PagedKVCache)
        return super().cache_spec(name)

    def functions(self) -> dict[str, Any]:
        """See `RecurrentForCausalLM`."""
        ints = [nn.spec.Int() for _ in SIZES]
        create = nn.spec.MethodSpec(
            self.create_tir_paged_kv_cache, list(SIZES), ints, "none", "none"
        )
        return {**super().functions(), "create_tir_paged_kv_cache": create}
