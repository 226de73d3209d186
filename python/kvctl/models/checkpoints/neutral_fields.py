"""Fields of a ``config.json`` that change a model, and the values with which they do not."""

from __future__ import annotations

from typing import Any

# Fields that change a model, unless its family uses them (`Architecture.uses`): the values with
# which they change nothing. A field may always be absent or null.
NEUTRAL_FIELDS: dict[str, tuple[Any, ...]] = {
    # Weights that are not what they seem
    **dict.fromkeys(("quantization_config", "compression_config", "quantization"), ()),
    # Biases
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "use_qkv_bias"), (False,)),
    **dict.fromkeys(("use_bias", "bias", "attention_out_bias", "lm_head_bias"), (False,)),
    **dict.fromkeys(("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"), (False,)),
    "scale_attn_weights": (True,),
    # Positions
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (1,)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "alibi"), (False,)),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval"), ()),
    "position_embedding_type": ("rope", "rotary"),
    # What is attended to
    **dict.fromkeys(("use_sliding_window", "use_bidirectional_attention"), (False,)),
    **dict.fromkeys(("attention_chunk_size", "block_configs"), ()),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), (False,)),
    "is_causal": (True,),
    "pruned_heads": ({},),
    # Scores and logits
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_softcapping"), ()),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_multiplier", "attention_scale"), ()),
    **dict.fromkeys(("clip_qkv", "scale_depth", "dim_model_base"), ()),
    **dict.fromkeys(("logits_scaling", "logit_scale", "scale_emb"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), (1,)),
    **dict.fromkeys(("attn_temperature_tuning", "scale_embedding"), (False,)),
    # Other layers
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), (False,)),
    **dict.fromkeys(("parallel_attn", "use_parallel_residual", "parallel_residual"), (False,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0,)),
    **dict.fromkeys(("num_nextn_predict_layers",), (0,)),
    **dict.fromkeys(("text_config", "vision_config"), ()),
}
