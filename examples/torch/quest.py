"""Quest (Tang et al. 2024, arXiv:2406.10774): attend to the pages whose keys may matter to q.

Each page has the least and the largest value of its keys in every dimension. They bound the scores
of q with any key of the page, and only the pages with the highest bounds are read. K and V of the
others stay in the cache: another q may choose them.

``python examples/torch/quest.py``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import kvctl
import kvctl.torch
from decoder import HEAD_DIM, KV_HEADS, LAYERS, Decoder, make_cache, run


class Quest:
    """Chooses pages of one sequence: the first, and those with the highest bounds.

    Parameters
    ----------
    cache : PagedKVCache
        The cache. Its sequences are empty.
    pages : int
        How many pages a layer reads, beside those with new tokens.
    """

    def __init__(self, cache: kvctl.PagedKVCache, pages: int) -> None:
        self.page_size, self.pages = cache.page_size, pages
        self.keys = [torch.empty(0, KV_HEADS, HEAD_DIM) for _ in range(LAYERS)]
        self.chosen: list[list[int]] = [[] for _ in range(LAYERS)]
        cache.select_pages(self.select)

    def attention(self, layer: int) -> nn.Module:
        """Return the attention of a layer: kvctl's, which shows its keys."""
        return QuestAttention(layer, self)

    def bounds(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the least and the largest key of each page, (pages, KV_HEADS, HEAD_DIM)."""
        pages = self.keys[layer].split(self.page_size)
        least, largest = zip(*(page.aminmax(dim=0) for page in pages), strict=True)
        return torch.stack(least), torch.stack(largest)

    def select(self, layer: int, q: Any) -> list[list[int]]:
        """Return the pages that the new tokens' queries (n, heads, HEAD_DIM) read."""
        queries = torch.from_dlpack(q).float().unflatten(1, (KV_HEADS, -1))[:, None]
        least, largest = (bound[None, :, :, None] for bound in self.bounds(layer))
        scores = torch.maximum(queries * least, queries * largest).sum(-1)  # (n, pages, kv, group)
        best = scores.amax((0, 2, 3)).topk(min(self.pages, scores.shape[1])).indices
        self.chosen[layer] = sorted({0, *best.tolist()})
        return [self.chosen[layer]]


class QuestAttention(kvctl.torch.Attention):
    """Attention that tells its keys before the cache asks for pages."""

    def __init__(self, layer: int, quest: Quest) -> None:
        super().__init__(layer)
        self.quest = quest

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend, q, k and v (n, heads, HEAD_DIM)."""
        keys = self.quest.keys
        keys[self.layer] = torch.cat([keys[self.layer], k.float().cpu()])
        return super().forward(q, k, v)


def quest_generate(
    seed: int, prompt: list[int], count: int, *, pages: int
) -> tuple[list[int], Quest, nn.Module]:
    """Return `count` greedy tokens of a random model, and what chose the pages."""
    torch.manual_seed(seed)
    cache = make_cache(page_size=8)
    quest = Quest(cache, pages)
    model = Decoder(quest.attention)
    cache.add_sequence(0)
    tokens = [int(run(model, cache, prompt)[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(run(model, cache, tokens[-1:])[-1].argmax()))
    return tokens, quest, model


if __name__ == "__main__":
    prompt = list(range(100, 200))
    for pages in (4, 8, 100):
        print(f"{pages:3} pages of 8 tokens:", quest_generate(0, prompt, 16, pages=pages)[0])
