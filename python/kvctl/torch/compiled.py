"""Attention as an operator that torch.compile puts into its graph."""

from __future__ import annotations

import torch

from .attend import attention
from .step import current_cache

# The operator says that it changes this tensor, though it changes the cache: so the compiler keeps
# every call, in its place among the others.
ORDER = torch.zeros(1)


@torch.library.custom_op("kvctl::attention", mutates_args=("order",))
def attention_op(
    order: torch.Tensor,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    soft_cap: float,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend over the cache that the calling thread's step is on when the graph runs."""
    return attention(
        current_cache(),
        layer,
        q,
        k,
        v,
        scale=scale,
        soft_cap=soft_cap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
    )


@attention_op.register_fake
def _(
    order: torch.Tensor,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    soft_cap: float,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if q.dim() != 4:  # packed, or wrong: then it is refused when it runs
        return q.new_empty(q.shape)
    batch, heads, rows, dim = q.shape
    return q.new_empty((batch, rows, heads, dim)).transpose(1, 2)
