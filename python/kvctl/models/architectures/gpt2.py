"""GPT-2: LayerNorm, biases, a table of positions, weights stored as (inputs, outputs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout, gguf_layout
from .source import Rows, Source, Transposed

if TYPE_CHECKING:
    from ..checkpoints.huggingface_config import HuggingFaceConfig


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    hidden = config.integer("n_embd", name="hidden_size")
    heads = config.integer("n_head", name="num_attention_heads")
    positions = config.integer("n_positions", name="context_window_size")
    return {
        "hidden_size": hidden,
        "intermediate_size": config.integer("n_inner", 4 * hidden, name="intermediate_size"),
        "num_hidden_layers": config.integer("n_layer", name="num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": config.head_dim(hidden, heads),
        "vocab_size": config.integer("vocab_size"),
        "rms_norm_eps": config.number("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": config.tied(),
        "context_window_size": positions,
        "learned_positions": positions,
        "activation": config.activation(),
    }


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    gguf_name="gpt2",
    huggingface=Layout(
        layer="h.{}.",
        parts={
            "model.embed_tokens": "wte",
            "model.embed_positions": "wpe",
            "model.norm": "ln_f",
            **{
                f"self_attn.{part}_proj": Source("attn.c_attn", Transposed(Rows(part)))
                for part in "qkv"
            },
            "self_attn.o_proj": Source("attn.c_proj", Transposed()),
            "mlp.up_proj": Source("mlp.c_fc", Transposed()),
            "mlp.down_proj": Source("mlp.c_proj", Transposed()),
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
        },
        prefix="transformer.",
        computed=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
    ),
    gguf=gguf_layout(
        {
            "model.embed_positions": "position_embd",
            **{f"self_attn.{part}_proj": Source("attn_qkv", Rows(part)) for part in "qkv"},
        }
    ),
    fields={
        **{"norm": "layer", "activation": "gelu_tanh", "gated_mlp": False},
        **dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), True),
        "tie_word_embeddings": True,
    },
    read_huggingface=_read,
    read_gguf=lambda config: {"learned_positions": config.number("context_length")},
    activation="activation_function",
    named_as_llama=False,
)
