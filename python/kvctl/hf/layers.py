"""The decoder layers of a model: skipped, fed and watched in a step that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from . import step as steps
from .probe import Layer

_current = torch.compiler.disable(steps.current)  # it changes between calls of a compiled model

# How many values a class of layers returns behind its rows; none of those that return rows alone.
_extra: WeakKeyDictionary[type, int] = WeakKeyDictionary()


class LayerGates:
    """Stands before each decoder layer of a model, and before its output layer.

    Nothing is put there before a step asks for hidden states or for a part of the layers. Outside
    such steps a gate lets everything through.

    Attributes
    ----------
    layers
        The decoder layers, in order; None if the model has no list of them.
    """

    def __init__(self, model: Any, attention: Sequence[Layer]) -> None:
        self.layers = _find_layers(model, attention)
        self._head = model.get_output_embeddings()
        self._installed = False

    def install(self) -> None:
        """Put the gates in place."""
        if self._installed or self.layers is None:
            return
        for i, layer in enumerate(self.layers):
            layer.forward = _Gate(i, layer)
        if _watch_head not in self._head._forward_pre_hooks.values():
            self._head.register_forward_pre_hook(_watch_head)
        self._installed = True


class _Gate:
    """The forward of one decoder layer, unless the step has another wish."""

    def __init__(self, index: int, layer: Any) -> None:
        # Gates of other runners on the same model are not stacked.
        inner = layer.forward
        self._forward: Any = inner._forward if isinstance(inner, _Gate) else inner
        self._index = index
        self._kind = type(layer)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        step = _current()
        if type(step) is not steps.Step:
            return self._forward(*arguments, **named)
        if step.layers is not None and self._index not in step.layers:
            rows = named["hidden_states"] if "hidden_states" in named else arguments[0]
            # An exit comes before all that skips the first layers, so that this is known.
            extra = _extra.get(self._kind)
            return rows if extra is None else (rows, *[None] * extra)
        if step.entering is not None and step.layers and self._index == step.layers[0]:
            if "hidden_states" in named:
                named["hidden_states"] = step.entering
            else:
                arguments = (step.entering, *arguments[1:])
        output = self._forward(*arguments, **named)
        if isinstance(output, tuple):
            _extra[self._kind] = len(output) - 1
        if self._index in step.hidden:
            step.hidden[self._index] = output[0] if isinstance(output, tuple) else output
        return output


def _watch_head(head: Any, arguments: Any) -> None:
    step = _current()
    if type(step) is steps.Step and step.wants_final:
        step.final = arguments[0]


def _find_layers(model: Any, attention: Sequence[Layer]) -> Any:
    """Return the ModuleList whose i-th module holds the attention of layer i."""
    for module in model.modules():
        if not isinstance(module, torch.nn.ModuleList) or len(module) != len(attention):
            continue
        pairs = zip(module, attention, strict=True)
        if all(any(part is one.module for part in layer.modules()) for layer, one in pairs):
            return module
    return None
