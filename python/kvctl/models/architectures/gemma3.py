"""Gemma 3 (text): as Gemma 2 without soft caps; q and k normalised, two bases of RoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout
from .gemma2 import GEMMA_FIELDS, GEMMA_NORMS, attention_scale, read_soft_caps, root
from .source import PlusOne, Source

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig

_LOCAL_THETA, _PERIOD, _LAYERS_27B = 10000.0, 6, 62


def _local_theta(config: HuggingFaceConfig) -> float:
    """Return the base of layers with a window, whose RoPE is never scaled."""
    parameters = config.get("rope_parameters", {})
    if not isinstance(parameters, dict) or "sliding_attention" not in parameters:
        return config.number("rope_local_base_freq", _LOCAL_THETA)
    local = config.rope(theta=_LOCAL_THETA, layers="sliding_attention")
    if local["rope_scale"] != 1.0 or "rope_scaling" in local:
        raise config.refuse("kvctl does not build scaled RoPE in layers with a window")
    return float(local["rope_theta"])


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    layers = config.integer("num_hidden_layers")
    period = config.get("sliding_window_pattern", _PERIOD)
    if type(period) is not int or period < 1:
        raise config.refuse(f"sliding_window_pattern must be an integer from 1, not {period!r:.60}")
    slides = [(layer + 1) % period != 0 for layer in range(layers)]
    return {
        **config.rope(theta=1e6, layers="full_attention"),
        **read_soft_caps(config, (None, None)),
        "local_rope_theta": _local_theta(config),
        "layer_windows": config.windows(config.get("sliding_window", 4096), slides),
        "attention_scale": attention_scale(config),
        "embedding_scale": config.integer("hidden_size") ** 0.5,
    }


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    layers, window = config.num_layers(), config.number("attention.sliding_window")
    scalar = config.number("attention.key_length", 256)
    if layers == _LAYERS_27B:  # the file does not say so
        scalar = config.number("embedding_length") // max(1, config.number("attention.head_count"))
    return {
        "layer_windows": tuple(window if (i + 1) % _PERIOD else 0 for i in range(layers)),
        "local_rope_theta": float(config.number("rope.freq_base_swa", _LOCAL_THETA)),
        "attention_scale": float(max(scalar, 1)) ** -0.5,
        "embedding_scale": root(config.number("embedding_length")),
    }


GEMMA3 = Architecture(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    gguf_name="gemma3",
    huggingface=Layout(
        parts={
            **GEMMA_NORMS,
            "self_attn.q_norm": Source("self_attn.q_norm", PlusOne()),
            "self_attn.k_norm": Source("self_attn.k_norm", PlusOne()),
        }
    ),
    fields={**GEMMA_FIELDS, "qk_norm": "head"},
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=(
        *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
        *("sliding_window", "layer_types"),
    ),
    uses_gguf=("attention.sliding_window",),
    activation="hidden_activation",
)
