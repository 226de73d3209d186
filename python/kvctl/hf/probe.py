"""What a model's attention is, seen in one small forward rather than read in its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# Arguments of attention that change nothing here: a forward has no dropout, and masks are compared
# with what the cache would do.
_KNOWN = frozenset(
    "dropout scaling softcap s_aux sliding_window is_causal position_ids position_embeddings "
    "use_cache cache past_key_values output_attentions output_hidden_states output_router_logits "
    "logits_to_keep return_dict hidden_states input_ids shared_kv_states".split()
)


@dataclass
class Layer:
    """The attention of one layer.

    Attributes
    ----------
    module
        The module that attends.
    shape
        Query heads, KV heads and the head dimension.
    window
        The last so many tokens that a token sees, itself included; 0 for all.
    """

    module: torch.nn.Module
    shape: tuple[int, int, int]
    window: int


@dataclass
class Probe:
    """Collects what attention is called with, and refuses what the cache does not do.

    Attributes
    ----------
    name
        The model's class, for messages.
    layers
        By the layer's number.
    """

    name: str
    layers: dict[int, Layer] = field(default_factory=dict)
    # Masks, and their windows; -1 where a mask is neither causal nor a window.
    _masks: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def found(self, count: int) -> list[Layer]:
        """Return the layers, in order.

        Raises
        ------
        NotImplementedError
            If not each of the model's `count` layers attended, or they differ in shape.
        """
        missing = [i for i in range(count) if i not in self.layers]
        if missing or not self.layers:
            raise NotImplementedError(
                f"{self.name}: of its {count} layers, {missing or 'all'} did not attend through "
                "transformers' AttentionInterface"
            )
        layers = [self.layers[i] for i in sorted(self.layers)]
        if list(self.layers) != list(range(len(layers))):
            raise NotImplementedError(
                f"{self.name}: its layers attend in the order {list(self.layers)}"
            )
        for i, layer in enumerate(layers):
            if layer.shape != layers[0].shape:
                raise NotImplementedError(
                    f"{self.name}: layers differ in (query heads, KV heads, head dimension): layer "
                    f"0 has {layers[0].shape}, layer {i} {layer.shape}"
                )
        return layers

    def attended(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        arguments: Mapping[str, Any],
    ) -> None:
        """Note one call of attention.

        Raises
        ------
        NotImplementedError
            If the cache would attend differently, or cannot.
        """
        layer = getattr(module, "layer_idx", None)
        where = f"{self.name}: {type(module).__name__} of layer {layer}"
        if not isinstance(layer, int):
            raise NotImplementedError(f"{self.name}: {type(module).__name__} has no layer_idx")
        if layer in self.layers:
            raise NotImplementedError(f"{where} attends twice in one forward (cross attention?)")
        if key.shape[-2] != query.shape[-2]:
            raise NotImplementedError(f"{where} attends to other tokens than its own (cross)")
        if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
            raise NotImplementedError(
                f"{where} has heads of {query.shape[-1]} for queries, {key.shape[-1]} for keys and "
                f"{value.shape[-1]} for values: the cache needs one head dimension (MLA has two)"
            )
        causal = arguments.get("is_causal")
        if not getattr(module, "is_causal", True) or causal is False:
            raise NotImplementedError(f"{where} is not causal")
        unknown = sorted(k for k, v in arguments.items() if k not in _KNOWN and v is not None)
        if unknown:
            raise NotImplementedError(
                f"{where} passes {', '.join(unknown)} to attention, which the cache does not know"
            )
        windows = [window for known, window in self._masks if known is mask]
        if not windows:
            raise NotImplementedError(f"{where} makes a mask of its own")
        if windows[0] < 0:
            raise NotImplementedError(
                f"{where} attends under a mask that is neither causal nor a sliding window (a "
                "prefix, images, or chunks)"
            )
        shape = query.shape[1], key.shape[1], query.shape[3]
        self.layers[layer] = Layer(module, shape, windows[0])

    def masked(self, mask: torch.Tensor, arguments: Mapping[str, Any]) -> None:
        """Note one mask that the model made; no layer may ever attend under it."""
        window = int(arguments.get("local_size") or 0)
        if arguments.get("use_vmap") or not _is_window(arguments["mask_function"], window):
            window = -1
        self._masks.append((mask, window))


def _is_window(mask_function: Any, window: int) -> bool:
    """Return whether a mask shows a token the last `window` tokens, or all before it for 0."""
    points = sorted(
        {0, 1, 2, 7, 1000}
        | {abs(n * max(window, 50) + d) for n in (1, 2, 3, 5) for d in (-2, -1, 0, 1)}
    )
    places = torch.tensor(points)
    q, kv = places[None, None, :, None], places[None, None, None, :]
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    try:
        got = mask_function(zero, zero, q, kv)
    except (IndexError, RuntimeError, TypeError, AttributeError):
        return False
    seen = kv <= q
    if window:
        seen = seen & (kv > q - window)
    return bool((got == seen).all())
