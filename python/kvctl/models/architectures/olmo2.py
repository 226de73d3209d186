"""OLMo 2: norms behind attention and feed-forward, and of q and k over all heads."""

from __future__ import annotations

from .architecture import Architecture, Layout

OLMO2 = Architecture(
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    gguf_name="olmo2",
    huggingface=Layout(
        parts={
            "attention_output_norm": "post_attention_layernorm",
            "mlp_output_norm": "post_feedforward_layernorm",
        }
    ),
    fields={"norm_placement": "after", "qk_norm": "all"},
    read_huggingface=lambda config: config.rope(),
)
