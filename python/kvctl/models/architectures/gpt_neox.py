"""GPT-NeoX and Pythia: LayerNorm, biases, parallel residuals, RoPE on parts of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout, gguf_layout
from .source import HeadByHead, Rows, Source

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    if not config.flag("attention_bias", True):
        raise config.refuse("kvctl builds models with attention_bias true")
    return {
        **config.rope(theta=config.number("rotary_emb_base", 10000.0)),
        **config.rotary_dim(config.number("rotary_pct", 0.25)),
        "rms_norm_eps": config.number("layer_norm_eps", 1e-5),
        "parallel_residual": config.flag("use_parallel_residual", True),
    }


def _read_gguf(config: GGUFConfig) -> dict[str, Any]:
    return {"parallel_residual": config.get("use_parallel_residual", True)}


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    gguf_name="gptneox",
    huggingface=Layout(
        layer="gpt_neox.layers.{}.",
        parts={
            "model.embed_tokens": "gpt_neox.embed_in",
            "model.norm": "gpt_neox.final_layer_norm",
            **{
                f"self_attn.{part}_proj": Source("attention.query_key_value", HeadByHead(index))
                for index, part in enumerate("qkv")
            },
            "self_attn.o_proj": "attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
        other_head="embed_out",
        computed=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    ),
    gguf=gguf_layout({f"self_attn.{part}_proj": Source("attn_qkv", Rows(part)) for part in "qkv"}),
    fields={
        **{"norm": "layer", "activation": "gelu", "gated_mlp": False},
        **dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), True),
    },
    read_huggingface=_read,
    read_gguf=_read_gguf,
    uses=("attention_bias", "partial_rotary_factor", "rotary_pct", "use_parallel_residual"),
    uses_gguf=("use_parallel_residual", "rope.dimension_count"),
)
