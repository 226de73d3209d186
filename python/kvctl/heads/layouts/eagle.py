"""The layouts of EAGLE-1 and EAGLE-3, and of vLLM speculators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.checkpoints.config import DecoderConfig
from ..config import HeadConfig, default_layers
from .layout import Files, Layout, add_target_norm
from .token_ids import read_token_ids

#: What a head's config.json may say of its layer.
_LAYER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
)


def read_eagle(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig, fc: str, stem: str
) -> tuple[Layout, HeadConfig]:
    """Read EAGLE-1's layout, or the same under other names."""
    layout, layer = Layout(), _layer_config(fields, target)
    width, biased = layer.hidden_size, f"{fc}.bias" in files
    config = HeadConfig(
        "eagle",
        target,
        layer,
        (target.num_hidden_layers - 1,),
        target.vocab_size,
        fc_bias=biased,
    )
    _embedding(layout, files)
    add_target_norm(layout, target, "feature_norm", "model.norm")
    layout.add("fc_token.weight", f"{fc}.weight", columns=(0, width))
    layout.add("fc.weight", f"{fc}.weight", columns=(width, 2 * width))
    if biased:
        layout.add("fc_token.bias", f"{fc}.bias")
    add_layer(layout, layer, stem, width, two=False)
    own = "lm_head.weight" in files
    layout.add("lm_head.weight", "lm_head.weight" if own else "target:lm_head.weight")
    return layout, config


def read_eagle3(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig, stem: str, *, norm_first: bool
) -> tuple[Layout, HeadConfig]:
    """Read EAGLE-3's layout."""
    layout, layer = Layout(), _layer_config(fields, target)
    width = layer.hidden_size
    given = fields.get("target_hidden_size")
    if given is not None and given != target.hidden_size:
        raise ValueError(
            f"it reads hidden states of {given!r} numbers, and the target's have "
            f"{target.hidden_size}"
        )
    first = _flag(fields, "norm_before_residual", norm_first)
    normed = _flag(fields, "norm_before_fc", False)
    token_ids = read_token_ids(files, target, layout)
    size = len(token_ids) if token_ids else target.vocab_size
    if fields.get("draft_vocab_size", size) != size:
        raise ValueError(
            f"draft_vocab_size is {fields['draft_vocab_size']!r}, and its map has {size} tokens"
        )
    config = HeadConfig(
        "eagle3",
        target,
        layer,
        _aux_layers(fields, target),
        size,
        token_ids=token_ids,
        norm_before_residual=first,
        norm_before_fc=normed,
    )
    if "embed_tokens.weight" not in files and width != target.hidden_size:
        raise ValueError(
            f"it is {width} wide and has no table of embeddings; the target's are "
            f"{target.hidden_size} wide"
        )
    _embedding(layout, files)
    layout.add("fc.weight", "fc.weight")
    if normed:
        layout.add("input_norm.weight", "input_norm.weight")
    add_layer(layout, layer, stem, width, two=True)
    layout.add("norm.weight", "norm.weight")
    if "lm_head.weight" in files:
        layout.add("lm_head.weight", "lm_head.weight")
    else:  # of a head that was trained under the target's own
        layout.add("lm_head.weight", "target:lm_head.weight", rows=token_ids or None)
    return layout, config


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a field that is true or false; NVIDIA's heads have it in ``eagle_config``."""
    nested = fields.get("eagle_config")
    value = fields.get(name, nested.get(name) if isinstance(nested, dict) else None)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return default if value is None else value


def _layer_config(fields: Mapping[str, Any], target: DecoderConfig) -> DecoderConfig:
    """Return the shape of a head's decoder layer."""
    own = fields.get("transformer_layer_config", fields)
    if not isinstance(own, Mapping):
        raise ValueError("transformer_layer_config must be an object")
    kind = own.get("model_type", "llama")
    if kind not in ("llama", "eagle", "eagle3"):
        raise ValueError(f"kvctl builds heads with a Llama's layer, not with one of {kind!r}")
    if own.get("num_hidden_layers", 1) != 1:
        raise ValueError(f"kvctl builds heads of one layer, not {own['num_hidden_layers']!r}")
    if own.get("vocab_size", target.vocab_size) != target.vocab_size:
        raise ValueError(
            f"it was trained for a vocabulary of {own['vocab_size']!r} tokens, and the target has "
            f"{target.vocab_size}"
        )
    given = {name: own[name] for name in _LAYER_FIELDS if own.get(name) is not None}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "vocab_size": target.vocab_size,
        "tie_word_embeddings": False,
        "max_position_embeddings": target.context_window_size,
        **given,
    }
    return DecoderConfig.from_huggingface(config, where="config.json")


def _embedding(layout: Layout, files: Files) -> None:
    own = "embed_tokens.weight" in files
    layout.add(
        "embed_tokens.weight", "embed_tokens.weight" if own else "target:model.embed_tokens.weight"
    )


def add_layer(layout: Layout, layer: DecoderConfig, stem: str, width: int, *, two: bool) -> None:
    """Name the tensors of the decoder layer; in `two` halves those of the joined row."""
    qkv = [f"{stem}.self_attn.{part}_proj" for part in "qkv"]
    weights = [f"{name}.weight" for name in qkv]
    if two:  # the token's embedding stands before the feature
        layout.add("layer.self_attn.qkv_token.weight", *weights, columns=(0, width))
        layout.add("layer.self_attn.qkv_proj.weight", *weights, columns=(width, 2 * width))
    else:
        layout.add("layer.self_attn.qkv_proj.weight", *weights)
    if layer.qkv_bias:
        layout.add("layer.self_attn.qkv_proj.bias", *[f"{name}.bias" for name in qkv])
    layout.add("layer.self_attn.o_proj.weight", f"{stem}.self_attn.o_proj.weight")
    if layer.output_bias:
        layout.add("layer.self_attn.o_proj.bias", f"{stem}.self_attn.o_proj.bias")
    mlp = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    for ours, theirs in mlp.items():
        for suffix in ("weight", "bias") if layer.mlp_bias else ("weight",):
            layout.add(f"layer.mlp.{ours}.{suffix}", *[f"{stem}.mlp.{n}.{suffix}" for n in theirs])
    norms = ["post_attention_layernorm", *(["hidden_norm", "input_layernorm"] if two else [])]
    for norm in norms:
        layout.add(f"layer.{norm}.weight", f"{stem}.{norm}.weight")


def _aux_layers(fields: Mapping[str, Any], target: DecoderConfig) -> tuple[int, ...]:
    """Return the layers that are read; the files count what enters a layer."""
    given = fields.get("eagle_aux_hidden_state_layer_ids")
    if given is None:
        nested = fields.get("eagle_config")
        given = nested.get("eagle_aux_hidden_state_layer_ids") if isinstance(nested, dict) else None
    if given is None:
        return default_layers(target.num_hidden_layers)
    if not isinstance(given, list) or not all(type(one) is int for one in given):
        raise ValueError(f"eagle_aux_hidden_state_layer_ids must be numbers, not {given!r:.60}")
    return tuple(one - 1 for one in given)
