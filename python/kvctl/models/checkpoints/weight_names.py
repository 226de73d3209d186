"""Which weights a model takes, under kvctl's names (a Llama's), and what to say of all others."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from .config import DecoderConfig

_LISTED = 4
"""Names that a message lists before it counts the rest."""


def weight_names(config: DecoderConfig) -> list[str]:
    """Return kvctl's names of all weights of a model; the output layer is none where it is tied."""
    biased = {"q": config.qkv_bias, "k": config.qkv_bias, "v": config.qkv_bias}
    parts = []
    for part in "qkvo":
        parts += _linear(f"self_attn.{part}_proj", biased.get(part, config.output_bias))
    for part in ("gate", "up", "down") if config.gated_mlp else ("up", "down"):
        parts += _linear(f"mlp.{part}_proj", config.mlp_bias)
    if config.qk_norm is not None:
        parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    for norm in layer_norms(config):
        parts += _linear(norm, config.norm == "layer")
    return [
        "model.embed_tokens.weight",
        *(["model.embed_positions.weight"] if config.learned_positions else []),
        *(
            f"model.layers.{layer}.{part}"
            for layer in range(config.num_hidden_layers)
            for part in parts
        ),
        *_linear("model.norm", config.norm == "layer"),
        *([] if config.tie_word_embeddings else ["lm_head.weight"]),
    ]


def layer_norms(config: DecoderConfig) -> list[str]:
    """Return the norms of a layer."""
    before = ["input_layernorm", "post_attention_layernorm"]
    after = ["attention_output_norm", "mlp_output_norm"]
    return {"before": before, "after": after, "both": before + after}[config.norm_placement]


def weight_shape(config: DecoderConfig, name: str) -> tuple[int, ...]:
    """Return the shape that a weight must have.

    Raises
    ------
    ValueError
        If a model of this configuration has no weight of that name.
    """
    hidden, ffn, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries = config.num_attention_heads * head
    keys = config.num_key_value_heads * head
    per_head = config.qk_norm == "head"
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "q_norm": (head if per_head else queries,),
        "k_norm": (head if per_head else keys,),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
        **dict.fromkeys(("norm", *layer_norms(config)), (hidden,)),
        "embed_tokens": (config.vocab_size, hidden),
        "embed_positions": (config.learned_positions, hidden),
        "lm_head": (config.vocab_size, hidden),
    }
    stem, _, suffix = name.rpartition(".")
    layer = stem.rsplit(".", 1)[-1]
    if layer not in shapes or suffix not in ("weight", "bias"):
        raise ValueError(f"a model of type '{config.model_type}' has no weight '{name}'")
    return shapes[layer][:1] if suffix == "bias" else shapes[layer]


def _linear(stem: str, biased: bool) -> list[str]:
    return [f"{stem}.weight", f"{stem}.bias"] if biased else [f"{stem}.weight"]


def check_consumed(wanted: Collection[str], found: Iterable[str], where: str) -> None:
    """Make sure that every tensor of a checkpoint is one that the model takes.

    Parameters
    ----------
    wanted : collection of str
        The tensors that the model takes.
    found : iterable of str
        Those that the checkpoint holds.
    where : str
        What messages call the checkpoint.

    Raises
    ------
    ValueError
        If the model would ignore a tensor.
    """
    known = set(wanted)
    left = [name for name in found if name not in known]
    if left:
        raise ValueError(
            f"{where} holds {_listed(left)} that the model of its configuration does not take: "
            "without them it would be another model than was trained"
        )


def check_present(wanted: Iterable[str], found: Container[str], where: str, hint: str = "") -> None:
    """Make sure that a checkpoint holds every tensor that the model takes; `hint` says what to do.

    Raises
    ------
    ValueError
        If it lacks one.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{where} lacks {_listed(missing)}: {hint or 'is a file missing?'}")


def _listed(names: list[str]) -> str:
    """Return "2 tensors ('a', 'b')", the first few of many."""
    few = ", ".join(repr(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({few}{more})"
