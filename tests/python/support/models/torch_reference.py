"""Attention in plain torch, which tests of kvctl.torch compare with."""

from __future__ import annotations

import math

import torch

import kvctl

LAYERS, HEADS, KV_HEADS, DIM = 2, 4, 2, 64
BOUND = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def make_cache(**changes):
    options = {
        "num_layers": LAYERS,
        "num_qo_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 512,
    }
    return kvctl.PagedKVCache.create(**(options | changes))


def rows(n, seed=0, dtype=torch.float32, device="cpu"):
    """q, k and v of n tokens for each layer, (LAYERS, heads, n, DIM)."""
    random = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(LAYERS, heads, n, DIM, generator=random)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    return [one.to(device=device, dtype=dtype) for one in made]


def plain(q, k, v, sees, scale=None):
    """Attention (..., heads, n, DIM) of n queries over m keys in float64; sees: bool (n, m)."""
    q, k, v = (x.to(torch.float64) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~sees.to(scores.device), -math.inf).softmax(-1)
    return weights.nan_to_num(0.0) @ v


def causal(n, m):
    """What n new tokens at the end of m keys see."""
    return torch.ones(n, m, dtype=torch.bool).tril(m - n)


def error(out, expected):
    return (out.to(torch.float64) - expected).abs().max().item()
