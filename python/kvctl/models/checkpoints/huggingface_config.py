"""Read a ``config.json`` of Hugging Face's: every field that changes a model is used or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..._ffi.untrusted import reading
from ..architectures.architecture import Architecture
from ..architectures.registry import ARCHITECTURES
from .huggingface_rope import read_rope
from .limits import check_size
from .neutral_fields import NEUTRAL_FIELDS

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_WINDOWED, _FULL = "sliding_attention", "full_attention"
# What we call a size that Hugging Face calls otherwise.
_SIZES = {"max_position_embeddings": "context_window_size"}
_REQUIRED = object()


def read_huggingface_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of the `DecoderConfig` of the model that a ``config.json`` describes.

    Parameters
    ----------
    config : mapping
        Its contents.
    where : str
        What messages call it.

    Raises
    ------
    ValueError
        If the model is not one that kvctl can build; the message names the field.
    """
    with reading(where):
        kind = config.get("model_type")
        architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
        if architecture is None:
            known = ", ".join(f"'{name}'" for name in ARCHITECTURES)
            raise ValueError(f"{where}: kvctl compiles models of type {known}, not '{kind!s:.60}'")
        reader = HuggingFaceConfig(config, where, architecture)
        reader.check_neutral()
        fields = {"model_type": kind, **architecture.fields}
        return {**fields, **reader.sizes(), **architecture.read_huggingface(reader)}


class HuggingFaceConfig:
    """A ``config.json``, from which the files of families read what is theirs.

    Parameters
    ----------
    config : mapping
        Its contents.
    where : str
        What messages call it.
    architecture : Architecture
        The family that it names.
    """

    def __init__(self, config: Mapping[str, Any], where: str, architecture: Architecture) -> None:
        self._config, self._where, self._architecture = config, where, architecture

    def sizes(self) -> dict[str, Any]:
        """Return the fields that all families but the oldest have, under Llama's names."""
        if not self._architecture.named_as_llama:
            return {}
        hidden = self.integer("hidden_size")
        heads = self.integer("num_attention_heads")
        return {
            "hidden_size": hidden,
            "intermediate_size": self.integer("intermediate_size"),
            "num_hidden_layers": self.integer("num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("num_key_value_heads", heads),
            "head_dim": self.head_dim(hidden, heads),
            "vocab_size": self.integer("vocab_size"),
            "rms_norm_eps": self.number("rms_norm_eps", 1e-6),
            "tie_word_embeddings": self.tied(),
            "context_window_size": self.integer("max_position_embeddings", 2048),
            "activation": self.activation(),
        }

    def head_dim(self, hidden: int, heads: int) -> int:
        """Return the length of a head."""
        head_dim = self.integer("head_dim", self._architecture.fields.get("head_dim"))
        if head_dim is None:
            if hidden % heads:
                raise self.refuse(
                    f"hidden_size {hidden} cannot be divided by num_attention_heads {heads}"
                )
            head_dim = hidden // heads
        return int(head_dim)

    def tied(self) -> Any:
        """Return whether the output layer is the embedding table."""
        default = self._architecture.fields.get("tie_word_embeddings", False)
        return self._config.get("tie_word_embeddings", default)

    def activation(self) -> str:
        """Return the activation by kvctl's name."""
        field = self._architecture.activation
        own = str(self._architecture.fields.get("activation", "silu"))
        if field not in self._config:
            return own
        value = self._config[field]
        found = _ACTIVATIONS.get(value) if isinstance(value, str) else None
        if found is None or (own == "silu" and found != own):
            raise self.refuse(f"kvctl builds models with {field} '{own}', not '{value!s:.60}'")
        return found

    def check_neutral(self) -> None:
        """Refuse what changes a model and is not used."""
        config, uses = self._config, self._architecture.uses
        for field, values in NEUTRAL_FIELDS.items():
            value = config.get(field)
            if field in uses or value is None:
                continue
            if not any(_same(value, neutral) for neutral in values):
                raise self.refuse(f"kvctl does not build models with {field} {value!r:.60}")
        window = config.get("sliding_window")
        if (
            "sliding_window" not in uses
            and window is not None
            and config.get("use_sliding_window") is not False
        ):
            raise self.refuse(f"kvctl does not build models with sliding_window {window!r:.60}")
        kinds = config.get("layer_types")
        if "layer_types" not in uses and kinds is not None:
            if not isinstance(kinds, list) or any(kind != _FULL for kind in kinds):
                raise self.refuse("kvctl builds models whose layer_types are all 'full_attention'")
        name = self._architecture.class_name
        names = config.get("architectures") or [name]
        if not isinstance(names, list) or name.lower() not in [str(n).lower() for n in names]:
            raise self.refuse(f"architectures must name {name}, not {names!r:.60}")

    def windows(self, window: Any, default: list[bool]) -> tuple[int, ...]:
        """Return the window of each layer, from ``layer_types`` where it is there.

        Parameters
        ----------
        window : int or None
            Of the layers that have one.
        default : list of bool
            Which layers have one, where the configuration does not say.
        """
        kinds = self._config.get("layer_types")
        if kinds is not None:
            layers = self.integer("num_hidden_layers")
            if not isinstance(kinds, list) or len(kinds) != layers:
                raise self.refuse(f"layer_types must name {layers} layers, not {kinds!r:.60}")
            wrong = [kind for kind in kinds if kind not in (_WINDOWED, _FULL)]
            if wrong:
                raise self.refuse(f"kvctl does not build layer_types {wrong[0]!r:.60}")
            default = [kind == _WINDOWED for kind in kinds]
        if not any(default):
            return ()
        if type(window) is not int or window < 1:
            raise self.refuse(f"sliding_window must be a positive integer, not {window!r:.60}")
        return tuple(window if one else 0 for one in default)

    def rope(self, *, theta: float = 10000.0, layers: str | None = None) -> dict[str, Any]:
        """Return the fields of RoPE.

        Parameters
        ----------
        theta : float
            The base where the configuration names none.
        layers : str, optional
            The key of a kind of layers ("full_attention"), where each has its own parameters.
        """
        return read_rope(self, theta=theta, layers=layers)

    def rotary_dim(self, default: float) -> dict[str, Any]:
        """Return how much of each head is rotated, where the family rotates a part.

        `default` is the fraction where no ``partial_rotary_factor`` says so.
        """
        parameters = self.get("rope_parameters", {})
        inner = parameters.get("partial_rotary_factor") if isinstance(parameters, dict) else None
        field = "partial_rotary_factor"
        fraction = self.number(field, default)
        if inner is not None:
            fraction = self.number(field, within=parameters)
        heads = self.integer("num_attention_heads")
        head_dim = self.head_dim(self.integer("hidden_size"), heads)
        if not 0 < fraction <= 1:
            raise self.refuse(f"{field} must be above 0, and 1 at most, not {fraction}")
        dim = int(head_dim * fraction)
        return {"rotary_dim": None if dim == head_dim else dim}

    def rope_kind(self, kind: Any) -> Any:
        """Return the name of a scaling of RoPE by what the family means by it."""
        names = self._architecture.rope_names
        return names.get(kind, kind) if isinstance(kind, str) else kind

    def uses(self, field: str) -> bool:
        """Whether the family reads a field that others must not have."""
        return field in self._architecture.uses

    def get(self, field: str, default: Any = None) -> Any:
        """Return a field as it stands, the default where it is absent or null."""
        value = self._config.get(field)
        return default if value is None else value

    def flag(self, field: str, default: bool) -> bool:
        """Return a boolean, or the default where the field is absent or null."""
        value = self.get(field, default)
        if type(value) is not bool:
            raise self.refuse(f"{field} must be true or false, not {value!r:.60}")
        return value

    def integer(self, field: str, default: Any = _REQUIRED, *, name: str | None = None) -> Any:
        """Return an integer, or the default where the field is absent or null.

        `name` is what `DecoderConfig` calls it, if that differs.
        """
        value = self._config.get(field)
        name = name or _SIZES.get(field, field)
        if value is None:
            if default is _REQUIRED:
                raise ValueError(f"{self._where} lacks '{field}'")
            return default
        try:
            check_size(name, value)
        except ValueError as error:
            damaged = "" if type(value) is int else " is damaged"
            problem = str(error).replace(name, field)
            raise ValueError(f"{self._where}{damaged}: {problem}") from None
        return value

    def number(
        self,
        field: str,
        default: float | None = None,
        *,
        within: Mapping[str, Any] | None = None,
    ) -> float:
        """Return a finite number of the configuration, or of an object in it."""
        value = (self._config if within is None else within).get(field, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(
                f"{self._where} is damaged: {field} must be a finite number, not {value!r:.60}"
            )
        return float(value)

    def optional_number(self, field: str) -> float | None:
        """Return a finite number, or None where the field is absent or null."""
        return None if self._config.get(field) is None else self.number(field)

    def __contains__(self, field: str) -> bool:
        return field in self._config

    def refuse(self, problem: str) -> ValueError:
        """Return the error that says what is wrong with the file."""
        return ValueError(f"{self._where}: {problem}")


def _same(value: Any, neutral: Any) -> bool:
    """Whether two values are equal, true and 1 being different."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
