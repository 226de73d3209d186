"""Any mask in a torch model: a keyword of the step, not of the model.

``python examples/torch/masks.py``
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import kvctl
from decoder import LAYERS, Decoder, make_cache, run
from kvctl import Mask


def under(
    model: nn.Module, cache: kvctl.PagedKVCache, tokens: Sequence[int], sees: torch.Tensor
) -> torch.Tensor:
    """Return the logits of tokens under a boolean matrix (n, past + n), as torch's masks are."""
    return run(model, cache, tokens, mask=Mask.full(sees.cpu().numpy()))


def prefix_lm(
    model: nn.Module, cache: kvctl.PagedKVCache, prefix: Sequence[int], rest: Sequence[int]
) -> torch.Tensor:
    """Return logits where the tokens of a prefix see each other both ways."""
    return run(model, cache, [*prefix, *rest], mask=Mask.prefix_lm(len(prefix)))


def near_and_far(
    model: nn.Module, cache: kvctl.PagedKVCache, tokens: Sequence[int], window: int
) -> torch.Tensor:
    """Return logits where only the last layer sees further back than a window."""
    masks = [Mask.window(window), Mask.causal()]
    mask = Mask.per_layer(masks, [*[0] * (LAYERS - 1), 1])
    return run(model, cache, tokens, mask=mask)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Decoder()
    for name, logits in (
        ("prefix-LM", lambda cache: prefix_lm(model, cache, range(10), range(10, 16))),
        ("windows", lambda cache: near_and_far(model, cache, range(16), 4)),
        ("causal", lambda cache: under(model, cache, range(16), torch.ones(16, 16).tril().bool())),
    ):
        cache = make_cache()
        cache.add_sequence(0)
        print(f"{name}: the next token would be", int(logits(cache)[-1].argmax()))
