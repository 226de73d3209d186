"""Gemma 2: norms on both sides, soft caps, a window in every other layer, scaled embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout
from .source import PlusOne, Source

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig

GEMMA_FIELDS = {
    "head_dim": 256,
    "norm_placement": "both",
    "activation": "gelu_tanh",
    "tie_word_embeddings": True,
}
# Its norms are stored as distances from one; llama.cpp's converter adds the one.
GEMMA_NORMS = {
    "model.norm": Source("model.norm", PlusOne()),
    "input_layernorm": Source("input_layernorm", PlusOne()),
    "attention_output_norm": Source("post_attention_layernorm", PlusOne()),
    "post_attention_layernorm": Source("pre_feedforward_layernorm", PlusOne()),
    "mlp_output_norm": Source("post_feedforward_layernorm", PlusOne()),
}
_LAYERS_27B = 46


def read_soft_caps(config: HuggingFaceConfig, default: tuple[Any, Any]) -> dict[str, Any]:
    """Read the soft caps of scores and logits; null is none, and the default where they lack."""
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    found = [
        config.optional_number(name) if name in config else other
        for name, other in zip(names, default, strict=True)
    ]
    return {"attention_soft_cap": found[0], "logit_soft_cap": found[1]}


def attention_scale(config: HuggingFaceConfig) -> float:
    """Read what scores are multiplied by."""
    scalar = config.number("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise config.refuse(f"query_pre_attn_scalar must be positive, not {scalar}")
    return float(scalar**-0.5)


def root(number: float) -> float:
    """Return a square root; what is no size is refused where sizes are checked."""
    return float(max(number, 1) ** 0.5)


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    layers = config.integer("num_hidden_layers")
    slides = [layer % 2 == 0 for layer in range(layers)]
    return {
        **config.rope(),
        **read_soft_caps(config, (50.0, 30.0)),
        "layer_windows": config.windows(config.get("sliding_window", 4096), slides),
        "attention_scale": attention_scale(config),
        "embedding_scale": config.integer("hidden_size") ** 0.5,
    }


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    layers, window = config.num_layers(), config.number("attention.sliding_window", 4096)
    scalar = config.number("attention.key_length", 256)
    if layers == _LAYERS_27B:  # the file does not say so
        scalar = config.number("embedding_length") // max(1, config.number("attention.head_count"))
    return {
        "layer_windows": tuple(window if layer % 2 == 0 else 0 for layer in range(layers)),
        "attention_soft_cap": float(config.number("attn_logit_softcapping", 50.0)),
        "logit_soft_cap": float(config.number("final_logit_softcapping", 30.0)),
        "attention_scale": float(max(scalar, 1)) ** -0.5,
        "embedding_scale": root(config.number("embedding_length")),
    }


GEMMA2 = Architecture(
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    gguf_name="gemma2",
    huggingface=Layout(parts=GEMMA_NORMS),
    fields=GEMMA_FIELDS,
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=(
        *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
        *("sliding_window", "layer_types"),
    ),
    uses_gguf=("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    activation="hidden_activation",
)
