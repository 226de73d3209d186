"""Llama 1 to 3.3, and everything that calls itself a Llama."""

from __future__ import annotations

from .architecture import Architecture, gguf_layout

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    gguf_name="llama",
    gguf=gguf_layout(neighbours=True),
    read_huggingface=lambda config: config.rope(),
)
