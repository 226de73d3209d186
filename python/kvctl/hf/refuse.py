"""Models that are refused by what their config and class say, before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

_ATTENTION = ("full_attention", "sliding_attention")


def refuse_unsupported(model: Any) -> None:
    """Raise unless the model is of a kind that the cache may serve.

    Raises
    ------
    TypeError
        If it is no model of transformers.
    NotImplementedError
        If the cache does not do what it needs; the message names it.
    ValueError
        If its weights are not loaded, or of a type that the cache does not have.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers model with an output layer, got {type(model).__name__}"
        )
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if why := _why_not(model, config):
        raise NotImplementedError(f"{name}: {why}")
    devices = {parameter.device for parameter in model.parameters()}
    if torch.device("meta") in devices:
        raise ValueError(f"{name}: some weights are not loaded (they are on the device 'meta')")
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise NotImplementedError(
            f"{name}: its weights are on {names}; a runner has one cache, so load the model on one "
            "device (device_map={'': 'cuda:0'})"
        )


def _why_not(model: PreTrainedModel, config: Any) -> str | None:
    """Return what of a model is not supported; None if nothing is known against it."""
    if model.config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        return "cross attention is not supported"
    if getattr(config, "kv_lora_rank", None):
        return "multi-head latent attention (MLA, kv_lora_rank) is not supported"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(_ATTENTION))
    if others:
        return f"layers of type {', '.join(others)} are not supported, only softmax attention is"
    if not getattr(config, "is_causal", True):
        return "bidirectional attention is not supported"
    if model.get_output_embeddings() is None:
        return "it has no output layer: load it with AutoModelForCausalLM"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids, so that trees cannot be forwarded"
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' AttentionInterface"
    return None
