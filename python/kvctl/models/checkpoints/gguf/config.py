"""Read a decoder's shape from GGUF metadata, as llama.cpp reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...architectures.architecture import Architecture
from ...architectures.registry import GGUF_ARCHITECTURES
from ..array import Array
from ..config import DecoderConfig
from ..limits import check_size
from ..rope import RopeScaling, yarn_attention_factor

# Keys that change a model, unless its family uses them (`Architecture.uses_gguf`): the values with
# which they change nothing. A key may always be absent.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("expert_count", "expert_used_count"), (0,)),
    **dict.fromkeys(("attention.sliding_window", "attention.clamp_kqv"), (0,)),
    **dict.fromkeys(("attention.max_alibi_bias", "attention.scale"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0,)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0, 1)),
    "rope.scaling.yarn_log_multiplier": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
}


_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of factors that divide RoPE's frequencies."""


def read_gguf_config(
    metadata: Mapping[str, Any],
    *,
    tied: bool,
    where: str,
    factors: Callable[[str], Array | None] = lambda name: None,
) -> DecoderConfig:
    """Return the shape of the model that a GGUF file's metadata describes.

    Parameters
    ----------
    metadata : mapping
        Of the whole model.
    tied : bool
        Whether the file has no output layer.
    where : str
        What messages call it.
    factors : callable, optional
        Returns one of the tensors `rope_tensors`, or None where the file lacks it.

    Raises
    ------
    ValueError
        If the model is not one that kvctl can build; the message names the key.
    """
    architecture = gguf_architecture(metadata, where)
    config = GGUFConfig(metadata, where, architecture, factors)
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"{where} holds no model: its general.type is {kind!r:.60}")
    config.check_neutral()
    fields = {
        "model_type": architecture.model_type,
        **architecture.fields,
        **config.sizes(),
        **config.rope(),
        **architecture.read_gguf(config),
    }
    try:
        return DecoderConfig(**{**fields, "tie_word_embeddings": tied})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def gguf_architecture(metadata: Mapping[str, Any], where: str) -> Architecture:
    """Return the family that a GGUF file names.

    Raises
    ------
    ValueError
        If kvctl does not compile it.
    """
    name = metadata.get("general.architecture")
    found = GGUF_ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(f"'{one}'" for one in GGUF_ARCHITECTURES)
        raise ValueError(f"{where} holds a model of type '{name!s:.60}'; kvctl compiles {known}")
    return found


def rope_tensors(architecture: Architecture) -> tuple[str, ...]:
    """Return the tensors of factors that a family may have."""
    return _FACTORS[1:] if architecture.gguf_name == "phi3" else _FACTORS[:1]


class GGUFConfig:
    """The metadata of a GGUF file, from which the files of families read what is theirs.

    Parameters
    ----------
    metadata : mapping
        Of the whole model.
    where : str
        What messages call it.
    architecture : Architecture
        The family that it names.
    factors : callable
        See `read_gguf_config`.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        where: str,
        architecture: Architecture,
        factors: Callable[[str], Array | None],
    ) -> None:
        self._metadata, self._where, self._factors = metadata, where, factors
        self._architecture, self._name = architecture, architecture.gguf_name

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of the family as it stands."""
        return self._metadata.get(f"{self._name}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """Return a number, or the default where the key is absent."""
        value = self.get(key, default)
        if type(value) not in (int, float):
            raise ValueError(f"{self._where} lacks the number {self._name}.{key}")
        return value

    def num_layers(self) -> int:
        """Return the number of layers, which is one that a model may have."""
        layers = self.number("block_count")
        try:
            check_size("num_hidden_layers", layers)
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        return int(layers)

    def decimal(self, key: str, default: Any = None) -> float:
        """Return a float32 as the shortest decimal that means it: what the authors wrote."""
        return float(str(np.float32(self.number(key, default))))

    def check_neutral(self) -> None:
        """Refuse what changes a model and is not used."""
        for key, values in _NEUTRAL.items():
            value = self.get(key, values[0])
            if key in self._architecture.uses_gguf:
                continue
            if not any(type(value) in (type(one), float) and value == one for one in values):
                raise ValueError(
                    f"{self._where}: kvctl does not build models with {self._name}.{key} "
                    f"{value!r:.60}"
                )

    def sizes(self) -> dict[str, Any]:
        """Return the sizes, which all families write under the same keys."""
        where, name = self._where, self._name
        hidden, heads = self.number("embedding_length"), self.number("attention.head_count")
        head_dim = self.number("attention.key_length", hidden // max(1, int(heads)))
        if self.get("attention.key_length") is None and head_dim * heads != hidden:
            raise ValueError(f"{where}: {hidden} dimensions cannot be divided by {heads} heads")
        if self.number("attention.value_length", head_dim) != head_dim:
            raise ValueError(f"{where}: keys and values must have the same length in every head")
        rotated = self.number("rope.dimension_count", head_dim)
        if rotated != head_dim and "rope.dimension_count" not in self._architecture.uses_gguf:
            raise ValueError(f"{where}: kvctl rotates whole heads, not parts of them")
        tokens = len(self._metadata.get("tokenizer.ggml.tokens", []))
        vocab_size = self.number("vocab_size", tokens)
        if type(vocab_size) is int and tokens > vocab_size:
            raise ValueError(
                f"{where}: its tokenizer has {tokens} tokens, {name}.vocab_size says {vocab_size}"
            )
        layer_norm = self._architecture.fields.get("norm") == "layer"
        return {
            "hidden_size": hidden,
            "intermediate_size": self.number("feed_forward_length"),
            "num_hidden_layers": self.number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": vocab_size,
            "rms_norm_eps": self.decimal(
                "attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"
            ),
            "context_window_size": self.number("context_length"),
            "rotary_dim": None if rotated == head_dim else rotated,
        }

    def rope(self) -> dict[str, Any]:
        """Return the fields of RoPE.

        As llama.cpp has it: a factor without a type scales linearly, the old key counts where the
        new one is missing, 0 means 1, and nothing scales where the type is "none". A tensor of
        factors divides the frequencies.
        """
        fields = {"rope_theta": float(self.number("rope.freq_base", 10000.0)), "rope_scale": 1.0}
        kind = self.get("rope.scaling.type", "linear")
        tensors = {name: self._factors(name) for name in rope_tensors(self._architecture)}
        present = {name: array for name, array in tensors.items() if array is not None}
        if present or kind in ("yarn", "longrope"):
            return {**fields, "rope_scaling": self._scaling(kind, present)}
        if kind == "none":
            return fields
        if kind != "linear":
            raise self._refuse_scaling(kind)
        factor = self._factor()
        return {**fields, "rope_scale": 1.0 / factor if factor else 1.0}

    def _refuse_scaling(self, kind: Any, why: str = "") -> ValueError:
        return ValueError(
            f"{self._where}: kvctl does not build models with scaled RoPE of type {kind!r:.60}{why}"
        )

    def _factor(self) -> float:
        factor = self.get("rope.scaling.factor", self.get("rope.scale_linear", 0.0))
        if type(factor) not in (int, float) or not math.isfinite(factor) or factor < 0:
            raise ValueError(
                f"{self._where}: {self._name}.rope.scaling.factor must be a positive number, not "
                f"{factor!r:.60}"
            )
        return float(factor)

    def _scaling(self, kind: Any, tensors: Mapping[str, Array]) -> RopeScaling:
        original = self.get("rope.scaling.original_context_length", 0)
        divisors = {name: tuple(map(float, array)) for name, array in tensors.items()}
        attention = self.get("rope.scaling.attn_factor", 0.0)
        if type(attention) not in (int, float) or not 0 <= attention < math.inf:
            raise self._refuse_scaling(kind, f" and attn_factor {attention!r:.60}")
        try:
            if "rope_freqs.weight" in divisors:
                if len(divisors) > 1 or self._factor() not in (0.0, 1.0) or kind == "yarn":
                    raise self._refuse_scaling(kind, " beside rope_freqs.weight")
                return RopeScaling("divisors", short=divisors["rope_freqs.weight"])
            if kind == "yarn":
                factor = self._factor()
                if divisors or type(original) is not int or original < 1 or factor <= 0:
                    raise self._refuse_scaling(kind, ": original_context_length or factor lacks")
                return RopeScaling(
                    kind,
                    factor=factor,
                    original_context=original,
                    beta_fast=self.decimal("rope.scaling.yarn_beta_fast", 32.0),
                    beta_slow=self.decimal("rope.scaling.yarn_beta_slow", 1.0),
                    attention_factor=yarn_attention_factor(factor) * (float(attention) or 1.0),
                )
            if len(divisors) != 2 or type(original) is not int:
                raise self._refuse_scaling(kind, ": its factors or original_context_length lack")
            return RopeScaling(
                "longrope",
                original_context=original,
                attention_factor=float(attention) or 1.0,
                short=divisors["rope_factors_short.weight"],
                long=divisors["rope_factors_long.weight"],
            )
        except ValueError as error:
            text = str(error)
            raise (error if self._where in text else ValueError(f"{self._where}: {text}")) from None
