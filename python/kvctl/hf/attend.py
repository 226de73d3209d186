"""The attention that transformers' models call: over the cache in a step, their own outside."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..torch import attention
from . import step as steps
from .probe import Probe

_PREFIX = "kvctl_"
_OWN = ("sdpa", "eager")


def take_over(model: PreTrainedModel) -> None:
    """Let a model's attention go through kvctl in a step.

    Outside of one, in ``model.generate`` say, it attends as it did before.
    """
    now = model.config._attn_implementation
    if not now.startswith(_PREFIX):
        model.set_attn_implementation(_PREFIX + (now if now in _OWN else "sdpa"))


def give_back(model: PreTrainedModel) -> None:
    """Undo `take_over`."""
    model.set_attn_implementation(model.config._attn_implementation.removeprefix(_PREFIX))


# What a thread's step is changes between calls, so that it must not be part of a compiled graph.
@torch.compiler.disable
def _attend(
    own: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend in one layer: q, k and v (1, heads, n, head_dim), the result (1, n, heads, dim)."""
    step = steps.current()
    if type(step) is steps.Step:
        layer: int = module.layer_idx
        if step.keeps:
            step.keys.append(key)
            step.values.append(value)
        out = attention(
            step.cache,
            layer,
            query,
            key,
            value,
            scale=scaling,
            soft_cap=softcap or 0.0,
            sinks=None if s_aux is None else s_aux.float(),
        )
        return out.transpose(1, 2), None
    arguments = {**others, "scaling": scaling}
    arguments |= {} if softcap is None else {"softcap": softcap}
    arguments |= {} if s_aux is None else {"s_aux": s_aux}
    if isinstance(step, Probe):
        step.attended(module, query, key, value, attention_mask, arguments)
    if own == "sdpa":
        function = ALL_ATTENTION_FUNCTIONS["sdpa"]
    else:
        function = sys.modules[type(module).__module__].eager_attention_forward
    result: tuple[torch.Tensor, torch.Tensor | None]
    result = function(module, query, key, value, attention_mask, **arguments)
    return result


@torch.compiler.disable
def _mask(own: str, **arguments: Any) -> torch.Tensor | None:
    """Return the mask that the model hands to attention; in a step the cache has it."""
    step = steps.current()
    if type(step) is steps.Step:
        return None
    probing = isinstance(step, Probe)
    if probing:
        arguments["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = (sdpa_mask if own == "sdpa" else eager_mask)(**arguments)
    if probing and mask is not None:
        step.masked(mask, arguments)
    return mask


for _name in _OWN:
    AttentionInterface.register(_PREFIX + _name, partial(_attend, _name))
    AttentionMaskInterface.register(_PREFIX + _name, partial(_mask, _name))
