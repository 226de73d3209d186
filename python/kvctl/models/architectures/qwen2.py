"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture

if TYPE_CHECKING:
    from ..checkpoints.huggingface_config import HuggingFaceConfig


def read_qwen(config: HuggingFaceConfig) -> dict[str, Any]:
    """Read RoPE, and the windows that the last layers may have."""
    layers = config.integer("num_hidden_layers")
    slides = config.flag("use_sliding_window", False)
    first = config.get("max_window_layers", 28)
    if slides and (type(first) is not int or first < 0):
        raise config.refuse(f"max_window_layers must be an integer from 0, not {first!r:.60}")
    default = [slides and layer >= first for layer in range(layers)]
    window = config.get("sliding_window", 4096) if slides else None
    return {**config.rope(), "layer_windows": config.windows(window, default)}


QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    gguf_name="qwen2",
    fields={"qkv_bias": True},
    read_huggingface=read_qwen,
    uses=("use_sliding_window", "sliding_window", "layer_types"),
)
