"""A small decoder in plain torch, with RoPE, whose attention is kvctl's.

All that makes it run on a cache is ``self.attend``. Tokens of all sequences of a step come packed,
one sequence after another, with the positions that the step gives.

``python examples/torch/decoder.py`` decodes a few tokens of a random model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import kvctl
import kvctl.torch

VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 3, 4, 2, 32
WIDTH = HEADS * HEAD_DIM


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Apply RoPE to (n, heads, HEAD_DIM)."""
    half = HEAD_DIM // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


class Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.attend = attend
        self.norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (n, WIDTH) of (n, WIDTH)."""
        heads = self.qkv(self.norm(x)).unflatten(-1, (-1, HEAD_DIM))
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), 1)
        q, k = rotate(q, positions), rotate(k, positions)
        x = x + self.out(self.attend(q, k, v).flatten(1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Decoder(nn.Module):
    """Logits (n, VOCAB) of the new tokens (n,) at their positions (n,).

    Parameters
    ----------
    attend : callable
        Makes the attention of a layer.
    """

    def __init__(self, attend: Callable[[int], nn.Module] = kvctl.torch.Attention) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer(attend(layer)) for layer in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, positions)
        return self.head(self.norm(x))


def make_cache(**options: Any) -> kvctl.PagedKVCache:
    """Return a cache of the model's shape. It applies no RoPE: the model does."""
    shape = {"num_layers": LAYERS, "num_qo_heads": HEADS, "num_kv_heads": KV_HEADS}
    options = {"head_dim": HEAD_DIM, "max_total_tokens": 1024, **options}
    return kvctl.PagedKVCache.create(**shape, **options)


@torch.inference_mode()
def run(
    model: nn.Module,
    cache: kvctl.PagedKVCache,
    tokens: Sequence[int],
    *,
    seq_id: int = 0,
    **options: Any,
) -> torch.Tensor:
    """Append tokens to a sequence, and return their logits (n, VOCAB)."""
    with kvctl.torch.forward(cache, [seq_id], [len(tokens)], **options) as positions:
        return model(torch.tensor(tokens, device=positions.device), positions)


def generate(
    model: nn.Module, cache: kvctl.PagedKVCache, prompt: Sequence[int], count: int
) -> list[int]:
    """Return `count` greedy tokens after a prompt, in a sequence of their own."""
    cache.add_sequence(0)
    tokens = [int(run(model, cache, prompt)[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(run(model, cache, tokens[-1:])[-1].argmax()))
    cache.remove_sequence(0)
    return tokens


if __name__ == "__main__":
    torch.manual_seed(0)
    print(generate(Decoder(), make_cache(), [5, 17, 200, 31], 16))
