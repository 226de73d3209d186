"""Mistral: a Llama whose layers all attend to a window, in its first version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture

if TYPE_CHECKING:
    from ..checkpoints.huggingface_config import HuggingFaceConfig

_WINDOW = 4096
"""Where ``config.json`` says nothing; null is none."""


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    window = config.get("sliding_window", None if "sliding_window" in config else _WINDOW)
    layers = config.integer("num_hidden_layers")
    windows = config.windows(window, [window is not None] * layers)
    return {**config.rope(), "layer_windows": windows}


# In GGUF files it calls itself a Llama.
MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    read_huggingface=_read,
    uses=("sliding_window", "layer_types"),
)
