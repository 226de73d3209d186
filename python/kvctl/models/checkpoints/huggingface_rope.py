"""Read the parameters of RoPE in a ``config.json``, of today's form and of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .rope import RopeScaling, longrope_attention_factor, yarn_attention_factor

if TYPE_CHECKING:
    from .huggingface_config import HuggingFaceConfig

_COMMON = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        *("factor", "attention_factor", "beta_fast", "beta_slow", "truncate"),
        *("mscale", "mscale_all_dim"),
    },
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}


def read_rope(
    config: HuggingFaceConfig, *, theta: float, layers: str | None = None
) -> dict[str, Any]:
    """Return the fields of `DecoderConfig` that say how a model rotates.

    Parameters
    ----------
    config : HuggingFaceConfig
        The configuration.
    theta : float
        The base where it names none.
    layers : str, optional
        The key of a kind of layers, where each may have parameters of its own.

    Raises
    ------
    ValueError
        If it is no scaling that kvctl builds, or lacks a number.
    """
    given = [key for key in ("rope_scaling", "rope_parameters") if config.get(key) is not None]
    if len(given) == 2 and config.get(given[0]) != config.get(given[1]):
        raise config.refuse("rope_scaling and rope_parameters contradict each other")
    field = given[0] if given else "rope_scaling"
    scaling = config.get(field) if given else {}
    if not isinstance(scaling, dict):
        raise config.refuse(f"{field} must be an object, not {scaling!r:.60}")
    if layers is not None and layers in scaling:
        scaling = scaling[layers]
        if not isinstance(scaling, dict):
            raise config.refuse(f"{field}: {layers} must be an object, not {scaling!r:.60}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if "type" in scaling and scaling["type"] != kind:
        raise config.refuse(f"{field} has the type {scaling['type']!r} and {kind!r}")
    kind = config.rope_kind(kind)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise config.refuse(
            f"kvctl does not build models with '{kind!s:.60}' scaling of RoPE ({field})"
        )
    known = _COMMON | _KEYS[kind]
    partial = scaling.get("partial_rotary_factor", 1)
    if config.uses("partial_rotary_factor") or (type(partial) is not bool and partial == 1):
        known = known | {"partial_rotary_factor"}
    unknown = sorted(set(scaling) - known)
    if unknown:
        raise config.refuse(
            f"{field} of type '{kind}' has {unknown[0]} {scaling[unknown[0]]!r:.60}, which "
            "kvctl does not build"
        )
    fields: dict[str, Any] = {
        "rope_theta": _theta(config, scaling, field, theta),
        "rope_scale": 1.0,
    }
    if kind == "linear":
        factor = config.number("factor", within=scaling)
        if not factor > 0:
            raise config.refuse(f"{field}: factor must be positive, not {factor}")
        fields["rope_scale"] = 1.0 / factor
    elif kind != "default":
        try:
            fields["rope_scaling"] = _scaling(config, kind, scaling)
        except ValueError as error:
            text = str(error)
            raise (error if field in text else config.refuse(f"{field}: {text}")) from None
    return fields


def _theta(
    config: HuggingFaceConfig, scaling: Mapping[str, Any], field: str, default: float
) -> float:
    """Return the base of RoPE's frequencies."""
    thetas = [config.number("rope_theta")] if "rope_theta" in config else []
    if "rope_theta" in scaling:
        thetas.append(config.number("rope_theta", within=scaling))
    if len(set(thetas)) > 1:
        raise config.refuse(f"rope_theta is {thetas[0]}, and {thetas[1]} in {field}")
    return (thetas or [default])[0]


def _scaling(config: HuggingFaceConfig, kind: str, scaling: Mapping[str, Any]) -> RopeScaling:
    original = scaling.get("original_max_position_embeddings")
    if kind == "longrope":
        original = config.get("original_max_position_embeddings", original)
    if type(original) is not int:
        raise ValueError(f"original_max_position_embeddings must be an integer, not {original!r}")

    def number(name: str, default: float | None = None) -> float:
        value = scaling.get(name)
        return config.number(name, default, within={} if value is None else scaling)

    if kind == "llama3":
        return RopeScaling(
            kind,
            factor=number("factor"),
            original_context=original,
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
        )
    if kind == "yarn":
        factor = number("factor")
        ratio = [number(name, 0.0) for name in ("mscale", "mscale_all_dim")]
        attention = yarn_attention_factor(factor)
        if all(ratio) and factor > 1:
            scaled = [(attention - 1) * one + 1 for one in ratio]
            attention = scaled[0] / scaled[1]
        truncate = scaling.get("truncate", True)
        if type(truncate) is not bool:
            raise ValueError(f"truncate must be true or false, not {truncate!r:.60}")
        return RopeScaling(
            kind,
            factor=factor,
            original_context=original,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            truncate=truncate,
            attention_factor=number("attention_factor", attention),
        )
    length = config.integer("max_position_embeddings", 2048)
    factor = number("factor", length / original if original else 1.0)
    return RopeScaling(
        kind,
        original_context=original,
        attention_factor=number("attention_factor", longrope_attention_factor(factor, original)),
        short=_numbers(scaling, "short_factor"),
        long=_numbers(scaling, "long_factor"),
    )


def _numbers(scaling: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = scaling.get(name)
    if (
        not isinstance(values, list)
        or not values
        or any(type(value) not in (int, float) for value in values)
    ):
        raise ValueError(f"{name} must be a list of numbers, not {values!r:.60}")
    return tuple(map(float, values))
