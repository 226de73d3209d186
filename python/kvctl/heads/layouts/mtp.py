"""The layouts of multi-token prediction modules, which lie among their model's own weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ...models.checkpoints.config import DecoderConfig
from ..config import HeadConfig
from .eagle import add_layer
from .layout import Files, Layout, add_target_norm

#: Parts of layers that kvctl does not build, by how their tensors are called.
_UNSUPPORTED = {
    ".mlp.experts.": "with experts",
    ".self_attn.kv_a_proj_with_mqa.": "with multi-head latent attention",
    ".self_attn.q_norm.": "that normalises q and k",
    ".self_attn.g_proj.": "with gated attention",
}
#: Fields of a target whose layers are a Llama's, or Qwen2's, where they are not given.
_PLAIN = (
    "norm",
    "norm_placement",
    "qk_norm",
    "gated_mlp",
    "parallel_residual",
    "attention_soft_cap",
    "residual_scale",
    "layer_windows",
    "no_rope_layers",
    "local_rope_theta",
    "learned_positions",
)


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a module.

    Attributes
    ----------
    stem, layer : str
        What precedes the names of its tensors, and of those of its decoder layer.
    fc, feature, token, last : str
        The layer that joins feature and token, the norms of these, and the norm behind the layer.
    token_first : bool
        Whether the token's half of the joined row comes first.
    gives_normed : bool
        Whether the feature that it gives is behind its last norm.
    """

    stem: str
    layer: str
    fc: str
    feature: str
    token: str
    last: str
    token_first: bool
    gives_normed: bool


_MIMO = Names(
    "model.mtp_layers.0",
    "model.mtp_layers.0",
    "input_proj",
    "hidden_layernorm",
    "token_layernorm",
    "final_layernorm",
    token_first=False,
    gives_normed=True,
)


def _deepseek(layers: int) -> Names:
    """Return DeepSeek-V3's and GLM-4.5's names: the module is one more layer of the model."""
    stem = f"model.layers.{layers}"
    parts = ("eh_proj", "hnorm", "enorm", "shared_head.norm")
    return Names(stem, stem, *parts, token_first=True, gives_normed=False)


def find_mtp(files: Files, target: DecoderConfig) -> Names | None:
    """Return the names of the module that a model's files hold; the first of several.

    Raises
    ------
    ValueError
        If it is one whose layer kvctl does not build.
    """
    if "mtp.fc.weight" in files:
        raise ValueError(
            "kvctl does not build multi-token prediction modules of Qwen3-Next: their layer gates "
            "its attention"
        )
    for names in (_MIMO, _deepseek(target.num_hidden_layers)):
        if f"{names.stem}.{names.fc}.weight" in files:
            return names
    return None


def read_mtp(names: Names, files: Files, target: DecoderConfig) -> tuple[Layout, HeadConfig]:
    """Read a module; every tensor of it is one that the head takes.

    Raises
    ------
    ValueError
        If its layer is not a Llama's or Qwen2's.
    """
    stem, width, layout = names.stem, target.hidden_size, Layout()
    mine = [name for name in files if name.startswith(f"{stem}.")]
    for part, what in _UNSUPPORTED.items():
        if any(part in name for name in mine):
            raise ValueError(
                f"kvctl builds multi-token prediction with a Llama's layer, not with one {what}"
            )
    defaults = {one.name: one.default for one in fields(DecoderConfig)}
    for name in _PLAIN:
        if getattr(target, name) != defaults[name]:
            raise ValueError(
                "kvctl builds multi-token prediction with a Llama's layer, and the target's have "
                f"{name} {getattr(target, name)!r}"
            )
    biased = f"{names.layer}.self_attn.q_proj.bias" in files
    layer = replace(target, num_hidden_layers=1, qkv_bias=biased)
    config = HeadConfig(
        "mtp",
        target,
        layer,
        (target.num_hidden_layers - 1,),
        target.vocab_size,
        gives_normed=names.gives_normed,
    )
    for parameter, own, targets in (
        ("embed_tokens.weight", "embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "shared_head.head.weight", "lm_head.weight"),
    ):
        own = f"{stem}.{own}"
        layout.add(parameter, own if own in files else f"target:{targets}")
    add_target_norm(layout, target, "feature_norm", "model.norm")
    halves = [(0, width), (width, 2 * width)]
    token, feature = halves if names.token_first else halves[::-1]
    layout.add("fc_token.weight", f"{stem}.{names.fc}.weight", columns=token)
    layout.add("fc.weight", f"{stem}.{names.fc}.weight", columns=feature)
    for parameter, part in (
        ("hidden_norm", names.feature),
        ("token_norm", names.token),
        ("norm", names.last),
    ):
        layout.add(f"{parameter}.weight", f"{stem}.{part}.weight")
    add_layer(layout, layer, names.layer, width, two=False)
    layout.add("layer.input_layernorm.weight", f"{names.layer}.input_layernorm.weight")
    layout.ignored |= set(files) - set(mine)
    return layout, config
