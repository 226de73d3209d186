"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama whose projections are stored fused, with LongRoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout, gguf_layout
from .source import Rows, Source

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig


def _parts(qkv: str, gate_up: str) -> dict[str, Source]:
    return {
        **{f"self_attn.{part}_proj": Source(qkv, Rows(part)) for part in "qkv"},
        **{f"mlp.{part}_proj": Source(gate_up, Rows(part, "gate up")) for part in ("gate", "up")},
    }


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    window, layers = config.get("sliding_window"), config.integer("num_hidden_layers")
    return {
        **config.rope(),
        **config.rotary_dim(1.0),
        "layer_windows": config.windows(window, [window is not None] * layers),
    }


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    window, layers = config.number("attention.sliding_window", 0), config.num_layers()
    return {"layer_windows": (window,) * layers if window else ()}


PHI3 = Architecture(
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    gguf_name="phi3",
    huggingface=Layout(parts=_parts("self_attn.qkv_proj", "mlp.gate_up_proj")),
    gguf=gguf_layout(_parts("attn_qkv", "ffn_up")),
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=("sliding_window", "partial_rotary_factor"),
    uses_gguf=("attention.sliding_window", "rope.dimension_count"),
    rope_names={"su": "longrope", "yarn": "longrope"},
)
