"""Which tensors a model takes, under Hugging Face's names, and what to say of all others."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from .config import LlamaConfig

_LISTED = 4
"""Names that a message lists before it counts the rest."""


def weight_names(config: LlamaConfig) -> list[str]:
    """Return the names of all weights of a model; the output layer is none where it is tied."""
    parts = (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    )
    return [
        "model.embed_tokens.weight",
        *(
            f"model.layers.{layer}.{part}.weight"
            for layer in range(config.num_hidden_layers)
            for part in parts
        ),
        "model.norm.weight",
        *([] if config.tie_word_embeddings else ["lm_head.weight"]),
    ]


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
