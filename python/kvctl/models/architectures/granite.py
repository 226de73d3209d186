"""Granite 3 (dense): a Llama with multipliers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, gguf_layout

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig

_FIELDS = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention_scale": "attention_multiplier",
}
_KEYS = {
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "attention_scale": "attention.scale",
}


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    scales = {name: config.number(field, 1.0) for name, field in _FIELDS.items()}
    divisor = config.number("logits_scaling", 1.0)
    if divisor <= 0:
        raise config.refuse(f"logits_scaling must be positive, not {divisor}")
    return {**config.rope(), **scales, "logit_scale": 1.0 / divisor}


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    found = {name: config.decimal(key, 0.0) for name, key in _KEYS.items()}
    scales = {name: value for name, value in found.items() if value}
    divisor = config.decimal("logit_scale", 0.0)
    return {**scales, "logit_scale": 1.0 / divisor if divisor else 1.0}


GRANITE = Architecture(
    model_type="granite",
    class_name="GraniteForCausalLM",
    gguf_name="granite",
    gguf=gguf_layout(neighbours=True),
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=(*_FIELDS.values(), "logits_scaling"),
    uses_gguf=(*_KEYS.values(), "logit_scale"),
)
