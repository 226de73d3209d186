"""Read a Llama's shape from GGUF metadata, as llama.cpp reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .config import LlamaConfig

# Keys that change a Llama into one that kvctl does not build: the values with which they change
# nothing. A key may always be absent.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("expert_count", "expert_used_count"), (0,)),
    **dict.fromkeys(("attention.sliding_window", "attention.clamp_kqv"), (0,)),
    **dict.fromkeys(("attention.max_alibi_bias", "attention.scale"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0,)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0, 1)),
    "rope.scaling.attn_factor": (0, 1),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
}


def read_gguf_config(metadata: Mapping[str, Any], *, tied: bool, where: str) -> LlamaConfig:
    """Return the shape of the Llama that a GGUF file's metadata describes.

    Parameters
    ----------
    metadata : mapping
        Of the whole model.
    tied : bool
        Whether the file has no output layer.
    where : str
        What messages call it.

    Raises
    ------
    ValueError
        If the model is not one that kvctl can build; the message names the key.
    """

    def number(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if type(value) not in (int, float):
            raise ValueError(f"{where} lacks the number llama.{key}")
        return value

    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"{where} holds a model of type '{architecture!s:.60}'; kvctl compiles 'llama'"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"{where} holds no model: its general.type is {kind!r:.60}")
    for key, values in _NEUTRAL.items():
        value = metadata.get(f"llama.{key}", values[0])
        if not any(type(value) in (type(one), float) and value == one for one in values):
            raise ValueError(f"{where}: kvctl does not build models with llama.{key} {value!r:.60}")

    hidden, heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", hidden // max(1, int(heads)))
    if "llama.attention.key_length" not in metadata and head_dim * heads != hidden:
        raise ValueError(f"{where}: {hidden} dimensions cannot be divided by {heads} heads")
    if number("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{where}: keys and values must have the same length in every head")
    if number("rope.dimension_count", head_dim) != head_dim:
        raise ValueError(f"{where}: kvctl rotates whole heads, not parts of them")
    tokens = len(metadata.get("tokenizer.ggml.tokens", []))
    vocab_size = number("vocab_size", tokens)
    if type(vocab_size) is int and tokens > vocab_size:
        raise ValueError(
            f"{where}: its tokenizer has {tokens} tokens, llama.vocab_size says {vocab_size}"
        )
    numbers = {
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        # Stored as float32: the shortest decimal that means it is what the authors wrote.
        "rms_norm_eps": float(str(np.float32(number("attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(number("rope.freq_base", 10000.0)),
        "rope_scale": _rope_scale(metadata, where),
        "context_window_size": number("context_length"),
    }
    try:
        return LlamaConfig(**numbers, tie_word_embeddings=tied)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _rope_scale(metadata: Mapping[str, Any], where: str) -> float:
    """Return what positions are multiplied by.

    As llama.cpp has it: a factor without a type scales linearly, the old key counts where the new
    one is missing, 0 means 1, and nothing scales where the type is "none".
    """
    kind = metadata.get("llama.rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise ValueError(
            f"{where}: kvctl does not build models with scaled RoPE of type {kind!r:.60}"
        )
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 0.0))
    if type(factor) not in (int, float) or not math.isfinite(factor) or factor < 0:
        raise ValueError(
            f"{where}: llama.rope.scaling.factor must be a positive number, not {factor!r:.60}"
        )
    return 1.0 / factor if factor else 1.0
