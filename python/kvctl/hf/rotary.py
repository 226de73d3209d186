"""Rotary embeddings of transformers whose frequencies depend on the tokens of a forward."""

from __future__ import annotations

from typing import Any

import torch


class RotaryStates:
    """The rotary modules of a model that choose frequencies by the greatest position.

    ``longrope`` has short and long factors, ``dynamic`` grows its base. Transformers decides once
    for a whole forward, so sequences that share one would influence each other; ``dynamic`` also
    remembers the longest text that it ever saw.

    Attributes
    ----------
    one_sequence
        Whether each sequence needs a forward of its own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        kinds = {"dynamic", "longrope"}
        found = [m for m in model.modules() if kinds & set(_rope_types(m))]
        self.one_sequence = bool(found)
        self._dynamic = [m for m in found if "dynamic" in _rope_types(m)]

    def begin(self) -> None:
        """Let ``dynamic`` forget the texts before."""
        for module in self._dynamic:
            module.max_seq_len_cached = module.original_max_seq_len


def _rope_types(module: Any) -> list[str]:
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, dict):
        return [str(one) for one in kind.values()]
    return [] if kind is None else [str(kind)]
