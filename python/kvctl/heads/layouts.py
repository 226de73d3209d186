"""The layouts in which heads are published: whose tensors are which parameter of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..models.checkpoints.config import DecoderConfig
from ..models.checkpoints.safetensors_file import SafetensorsFile
from .config import HeadConfig, default_layers

Files = Mapping[str, SafetensorsFile]
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
_UNSUPPORTED = ("norm_before_fc", "norm_output", "layernorms", "parallel_drafting")
_BLOCK = re.compile(r"(medusa_head\.)?(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)")


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: tensors one below the other, and perhaps some columns of them.

    The target's tensors are marked by "target:".
    """

    names: tuple[str, ...]
    columns: tuple[int, int] | None = None


@dataclass
class Layout:
    """Whose tensors are which parameter; tensors that are there and not needed are ignored."""

    parameters: dict[str, Source] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def sources(self, parameter: str) -> Source:
        """Return where a parameter comes from."""
        return self.parameters[parameter]

    def tensors(self) -> list[str]:
        """Return the names of all tensors that are read."""
        return list(dict.fromkeys(n for one in self.parameters.values() for n in one.names))

    @staticmethod
    def is_own(name: str) -> bool:
        """Whether a tensor is the head's own."""
        return not name.startswith("target:")

    def add(self, parameter: str, *names: str, columns: tuple[int, int] | None = None) -> None:
        """Say where a parameter comes from."""
        self.parameters[parameter] = Source(names, columns)


def read_layout(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig
) -> tuple[Layout, HeadConfig]:
    """Find out how a head was published, and what its shape is.

    Parameters
    ----------
    fields
        Its ``config.json``.
    files
        The file of each tensor.
    target
        The model it is for.

    Raises
    ------
    ValueError
        If it is none that kvctl builds, or of another target.
    """
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise ValueError(f"kvctl does not build heads with {name} {fields[name]!r}")
    speculators = fields.get("speculators_model_type")
    if speculators not in (None, "eagle", "eagle3"):
        raise ValueError(f"kvctl builds speculators of type eagle and eagle3, not {speculators!r}")
    if speculators == "eagle":
        return _eagle(fields, files, target, "fusion_fc", "transformer")
    if speculators == "eagle3":
        return _eagle3(fields, files, target, "layers.0", norm_first=True)
    if any(name.startswith("midlayer.") for name in files):
        return _eagle3(fields, files, target, "midlayer", norm_first=False)
    if "d2t" in files and "layers.0.hidden_norm.weight" in files:
        return _eagle3(fields, files, target, "layers.0", norm_first=False)
    if "fc.weight" in files:
        return _eagle(fields, files, target, "fc", "layers.0")
    if any(_BLOCK.fullmatch(name) for name in files):
        return _medusa(fields, files, target)
    some = ", ".join(sorted(files)[:4])
    raise ValueError(
        f"its tensors ({some}) are in no layout of heads that kvctl knows: EAGLE's, EAGLE-3's, "
        "Medusa's or vLLM speculators'"
    )


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


def _from_target(layout: Layout, target: DecoderConfig, parameter: str, name: str) -> None:
    """Take a norm of the target, with its bias where it has one."""
    for suffix in ("weight", "bias") if target.norm == "layer" else ("weight",):
        layout.add(f"{parameter}.{suffix}", f"target:{name}.{suffix}")


def _embedding(layout: Layout, files: Files) -> None:
    own = "embed_tokens.weight" in files
    layout.add(
        "embed_tokens.weight", "embed_tokens.weight" if own else "target:model.embed_tokens.weight"
    )


def _layer(layout: Layout, layer: DecoderConfig, stem: str, width: int, *, two: bool) -> None:
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


def _eagle(
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
    _from_target(layout, target, "feature_norm", "model.norm")
    layout.add("fc_token.weight", f"{fc}.weight", columns=(0, width))
    layout.add("fc.weight", f"{fc}.weight", columns=(width, 2 * width))
    if biased:
        layout.add("fc_token.bias", f"{fc}.bias")
    _layer(layout, layer, stem, width, two=False)
    own = "lm_head.weight" in files
    layout.add("lm_head.weight", "lm_head.weight" if own else "target:lm_head.weight")
    return layout, config


def _eagle3(
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
    first = fields.get("norm_before_residual", norm_first)
    if not isinstance(first, bool):
        raise ValueError(f"norm_before_residual must be true or false, not {first!r}")
    token_ids = _token_ids(files, target, layout)
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
    )
    if "embed_tokens.weight" not in files and width != target.hidden_size:
        raise ValueError(
            f"it is {width} wide and has no table of embeddings; the target's are "
            f"{target.hidden_size} wide"
        )
    _embedding(layout, files)
    layout.add("fc.weight", "fc.weight")
    _layer(layout, layer, stem, width, two=True)
    layout.add("norm.weight", "norm.weight")
    layout.add("lm_head.weight", "lm_head.weight")
    return layout, config


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


def _token_ids(files: Files, target: DecoderConfig, layout: Layout) -> tuple[int, ...]:
    """Return the target's tokens of the head's, from ``d2t``; ``t2d`` must agree with it."""
    layout.ignored |= {"d2t", "t2d"} & set(files)
    if "d2t" not in files:
        if "t2d" in files:
            raise ValueError("it has a t2d and no d2t")
        return ()
    offsets = files["d2t"].integers("d2t")
    if offsets.ndim != 1:
        raise ValueError(f"d2t must be a list, not of shape {offsets.shape}")
    ids = offsets + np.arange(len(offsets))
    if ids.size == 0 or ids.min() < 0 or ids.max() >= target.vocab_size:
        raise ValueError(f"d2t names tokens outside the target's 0 to {target.vocab_size - 1}")
    if len(np.unique(ids)) != len(ids):
        raise ValueError("d2t names a token twice")
    if "t2d" in files:
        known = files["t2d"].integers("t2d")
        if known.shape != (target.vocab_size,):
            raise ValueError(
                f"t2d has the shape {known.shape}, and the target {target.vocab_size} tokens"
            )
        if not np.array_equal(np.flatnonzero(known), np.sort(ids)):
            raise ValueError("t2d and d2t do not name the same tokens")
    return tuple(ids.tolist())


def _medusa(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig
) -> tuple[Layout, HeadConfig]:
    """Read Medusa's layout: heads of residual blocks and an output layer."""
    layout = Layout()
    found = [match for name in files if (match := _BLOCK.fullmatch(name))]
    prefix = found[0][1] or ""
    heads = max(int(match[2]) for match in found) + 1
    blocks = max(int(match[3]) for match in found)
    for name, have in (("medusa_num_heads", heads), ("medusa_num_layers", blocks)):
        if fields.get(name, have) != have:
            raise ValueError(f"{name} is {fields[name]!r}, and its tensors have {have}")
    token_ids = _token_ids(files, target, layout)
    size = len(token_ids) if token_ids else target.vocab_size
    config = HeadConfig(
        "medusa",
        target,
        target,
        (target.num_hidden_layers - 1,),
        size,
        token_ids=token_ids,
        num_heads=heads,
        num_blocks=blocks,
    )
    _from_target(layout, target, "feature_norm", "model.norm")
    for head in range(heads):
        for block in range(blocks):
            for part in ("weight", "bias"):
                name = f"{prefix}{head}.{block}.linear.{part}"
                layout.add(f"blocks.{head * blocks + block}.linear.{part}", name)
        layout.add(f"lm_heads.{head}.weight", f"{prefix}{head}.{blocks}.weight")
    return layout, config
