"""Read a ``config.json`` of Hugging Face's: every field that changes a Llama is used or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..._ffi.untrusted import reading
from .limits import check_size

# Fields that other models of the family have, or that change a Llama into one that kvctl does not
# build: the values with which they change nothing. A field may always be absent or null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # Weights that are not what they seem
    **dict.fromkeys(("quantization_config", "compression_config", "quantization"), ()),
    # Biases
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "use_qkv_bias"), (False,)),
    **dict.fromkeys(("use_bias", "bias", "attention_out_bias", "lm_head_bias"), (False,)),
    # Positions
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (1,)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "alibi"), (False,)),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval"), ()),
    "position_embedding_type": ("rope", "rotary"),
    # What is attended to
    **dict.fromkeys(("use_sliding_window", "use_bidirectional_attention"), (False,)),
    **dict.fromkeys(("attention_chunk_size", "block_configs"), ()),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), (False,)),
    "is_causal": (True,),
    "pruned_heads": ({},),
    # Scores and logits
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_softcapping"), ()),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_multiplier", "attention_scale"), ()),
    **dict.fromkeys(("clip_qkv", "scale_depth", "dim_model_base"), ()),
    **dict.fromkeys(("logits_scaling", "logit_scale", "scale_emb"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), (1,)),
    **dict.fromkeys(("attn_temperature_tuning", "scale_embedding"), (False,)),
    # Other layers
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), (False,)),
    **dict.fromkeys(("parallel_attn", "use_parallel_residual", "parallel_residual"), (False,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0,)),
    **dict.fromkeys(("num_nextn_predict_layers",), (0,)),
    **dict.fromkeys(("text_config", "vision_config"), ()),
}
_SILU = ("silu", "swish")
# What we call a size that Hugging Face calls otherwise.
_SIZES = {"max_position_embeddings": "context_window_size"}
_REQUIRED = object()


def read_huggingface_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of the `LlamaConfig` of the model that a ``config.json`` describes.

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
        return _Reader(config, where).read()


class _Reader:
    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where

    def read(self) -> dict[str, Any]:
        config = self._config
        architecture = config.get("model_type")
        if architecture != "llama":
            raise self._refuse(f"kvctl compiles models of type 'llama', not '{architecture!s:.60}'")
        self._check_neutral()
        theta, scale = self._rope()
        hidden = self._integer("hidden_size")
        heads = self._integer("num_attention_heads")
        head_dim = self._integer("head_dim", None)
        if head_dim is None:
            if hidden % heads:
                raise self._refuse(
                    f"hidden_size {hidden} cannot be divided by num_attention_heads {heads}"
                )
            head_dim = hidden // heads
        return {
            "hidden_size": hidden,
            "intermediate_size": self._integer("intermediate_size"),
            "num_hidden_layers": self._integer("num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer("num_key_value_heads", heads),
            "head_dim": head_dim,
            "vocab_size": self._integer("vocab_size"),
            "rms_norm_eps": self._number(config, "rms_norm_eps", 1e-6),
            "rope_theta": theta,
            "rope_scale": scale,
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
            "context_window_size": self._integer("max_position_embeddings", 2048),
        }

    def _check_neutral(self) -> None:
        config = self._config
        for field, values in _NEUTRAL.items():
            value = config.get(field)
            if value is not None and not any(_same(value, neutral) for neutral in values):
                raise self._refuse(f"kvctl does not build models with {field} {value!r:.60}")
        window = config.get("sliding_window")
        if window is not None and config.get("use_sliding_window") is not False:
            raise self._refuse(f"kvctl does not build models with sliding_window {window!r:.60}")
        kinds = config.get("layer_types")
        if kinds is not None and (
            not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
        ):
            raise self._refuse("kvctl builds models whose layer_types are all 'full_attention'")
        activation = config.get("hidden_act", "silu")
        if activation not in _SILU:
            raise self._refuse(
                f"kvctl builds models with hidden_act 'silu', not '{activation!s:.60}'"
            )
        names = config.get("architectures") or ["LlamaForCausalLM"]
        if not isinstance(names, list) or "llamaforcausallm" not in [str(n).lower() for n in names]:
            raise self._refuse(f"architectures must name LlamaForCausalLM, not {names!r:.60}")

    def _rope(self) -> tuple[float, float]:
        """Return the base of RoPE's frequencies, and what positions are multiplied by."""
        config = self._config
        given = [key for key in ("rope_scaling", "rope_parameters") if config.get(key) is not None]
        if len(given) == 2 and config[given[0]] != config[given[1]]:
            raise self._refuse("rope_scaling and rope_parameters contradict each other")
        field = given[0] if given else "rope_scaling"
        scaling = config[field] if given else {}
        if not isinstance(scaling, dict):
            raise self._refuse(f"{field} must be an object, not {scaling!r:.60}")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if scaling.get("type", kind) != kind:
            raise self._refuse(f"{field} has the type {scaling['type']!r} and {kind!r}")
        known = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}
        if kind == "linear":
            known.add("factor")
        elif kind != "default":
            raise self._refuse(
                f"kvctl does not build models with '{kind!s:.60}' scaling of RoPE ({field})"
            )
        if _same(scaling.get("partial_rotary_factor", 1), 1):
            known.add("partial_rotary_factor")
        unknown = sorted(set(scaling) - known)
        if unknown:
            raise self._refuse(
                f"{field} of type '{kind}' has {unknown[0]} {scaling[unknown[0]]!r:.60}, which "
                "kvctl does not build"
            )
        factor = self._number(scaling, "factor") if kind == "linear" else 1.0
        if not factor > 0:
            raise self._refuse(f"{field}: factor must be positive, not {factor}")
        thetas = [
            self._number(part, "rope_theta") for part in (config, scaling) if "rope_theta" in part
        ]
        if len(set(thetas)) > 1:
            raise self._refuse(f"rope_theta is {thetas[0]}, and {thetas[1]} in {field}")
        return (thetas or [10000.0])[0], 1.0 / factor

    def _integer(self, field: str, default: Any = _REQUIRED) -> Any:
        """Return an integer, or the default where the field is absent or null."""
        value = self._config.get(field)
        if value is None:
            if default is _REQUIRED:
                raise ValueError(f"{self._where} lacks '{field}'")
            return default
        try:
            check_size(_SIZES.get(field, field), value)
        except ValueError as error:
            damaged = "" if type(value) is int else " is damaged"
            problem = str(error).replace(_SIZES.get(field, field), field)
            raise ValueError(f"{self._where}{damaged}: {problem}") from None
        return value

    def _number(self, fields: Mapping[str, Any], field: str, default: float | None = None) -> float:
        value = fields.get(field, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(
                f"{self._where} is damaged: {field} must be a finite number, not {value!r:.60}"
            )
        return float(value)

    def _refuse(self, problem: str) -> ValueError:
        return ValueError(f"{self._where}: {problem}")


def _same(value: Any, neutral: Any) -> bool:
    """Whether two values are equal, true and 1 being different."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
