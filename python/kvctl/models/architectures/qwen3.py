"""Qwen3 (dense): a Llama whose q and k are normalised head by head."""

from __future__ import annotations

from .architecture import Architecture
from .qwen2 import read_qwen

QWEN3 = Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    gguf_name="qwen3",
    fields={"qk_norm": "head", "head_dim": 128},
    read_huggingface=read_qwen,
    uses=("use_sliding_window", "sliding_window", "layer_types"),
)
