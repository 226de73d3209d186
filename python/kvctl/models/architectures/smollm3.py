"""SmolLM3: a Llama without RoPE in every fourth layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, gguf_layout

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig

_INTERVAL = 4


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    layers = config.integer("num_hidden_layers")
    every = config.get("no_rope_layer_interval", _INTERVAL)
    if type(every) is not int or every < 1:
        raise config.refuse(f"no_rope_layer_interval must be a positive integer, not {every!r:.60}")
    # One says that a layer rotates.
    flags = config.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(layers)])
    if not isinstance(flags, list) or len(flags) < layers or any(f not in (0, 1) for f in flags):
        raise config.refuse(f"no_rope_layers must be 0 or 1 for {layers} layers, not {flags!r:.60}")
    skipped = tuple(layer for layer in range(layers) if not flags[layer])
    return {**config.rope(theta=2e6), "no_rope_layers": skipped}


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    layers = range(config.num_layers())
    return {"no_rope_layers": tuple(i for i in layers if (i + 1) % _INTERVAL == 0)}


SMOLLM3 = Architecture(
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    gguf_name="smollm3",
    gguf=gguf_layout(neighbours=True),
    fields={"tie_word_embeddings": True},
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=("no_rope_layers", "no_rope_layer_interval"),
)
