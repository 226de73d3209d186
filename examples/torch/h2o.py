"""H2O (Zhang et al. 2023, arXiv:2306.14048): keep the tokens that attention uses most.

The cache's observer sums the attention that each token gets. After each step, all tokens but the
heavy hitters and the recent ones are evicted, from all layers and heads alike. Those that stay keep
their positions.

``python examples/torch/h2o.py``
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import kvctl
from decoder import Decoder, generate, make_cache, run


def choose(scores: torch.Tensor, heavy: int, recent: int) -> list[int]:
    """Return which of the tokens stay: the `recent` last, and the `heavy` best of the others."""
    older = max(len(scores) - recent, 0)
    best = scores[:older].topk(min(heavy, older)).indices
    return [*best.sort().values.tolist(), *range(older, len(scores))]


def h2o_generate(
    model: nn.Module,
    cache: kvctl.PagedKVCache,
    prompt: Sequence[int],
    count: int,
    *,
    heavy: int,
    recent: int,
) -> list[int]:
    """Return `count` greedy tokens from a sequence of at most `heavy` + `recent` tokens."""
    cache.add_sequence(0)
    tokens: list[int] = []
    with kvctl.AttentionMass(cache) as mass:
        new = list(prompt)
        while len(tokens) < count:
            tokens.append(int(run(model, cache, new)[-1].argmax()))
            new = tokens[-1:]
            scores = torch.from_numpy(mass[0]).sum((0, 2))  # of all layers and heads
            kept = choose(scores, heavy, recent)
            if len(kept) < len(scores):
                cache.evict(0, kept)
                mass.keep(0, kept)
    cache.remove_sequence(0)
    return tokens


if __name__ == "__main__":
    torch.manual_seed(0)
    model, prompt = Decoder(), list(range(100, 180))
    full = generate(model, make_cache(), prompt, 32)
    few = h2o_generate(model, make_cache(), prompt, 32, heavy=16, recent=16)
    print(few, f"{sum(a == b for a, b in zip(full, few, strict=True))} of 32 as in full", sep="\n")
