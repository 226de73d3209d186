"""Attention over a cache for torch tensors."""

from __future__ import annotations

import torch

from .._ffi import functions as ffi
from ..cache import PagedKVCache
from .arguments import check_arguments, check_plain, to_layer, to_scale


@torch.compiler.disable
def attention(
    cache: PagedKVCache,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    soft_cap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Append the new tokens' K and V to a layer and attend under the step's mask.

    Between ``cache.begin_forward`` and ``end_forward``, once for each layer. Tensors may have any
    strides. Under ``torch.compile`` this function breaks the graph; :class:`Attention` does not.

    Parameters
    ----------
    cache : PagedKVCache
        The cache. Without ``rope=``, keys are kept as they come: a model applies its own RoPE.
    layer : int
        The layer.
    q : tensor, (batch, num_qo_heads, n, head_dim) or (total_new, num_qo_heads, head_dim)
        Queries of the new tokens, float32, float16 or bfloat16, laid out as for
        ``scaled_dot_product_attention``, or packed. With four dimensions, token ``i`` of batch row
        ``b`` is the step's new token ``b * n + i``.
    k, v : tensor, (batch, num_kv_heads, n, head_dim) or (total_new, num_kv_heads, head_dim)
        Keys and values of the new tokens only, of q's type; under autocast they may
        differ, and become autocast's. Query head ``h`` attends to KV head
        ``h // (num_qo_heads // num_kv_heads)``.
    scale : float, optional
        Scores are multiplied by it; ``head_dim ** -0.5`` by default.
    soft_cap : float
        If positive, scores become ``soft_cap * tanh(scores / soft_cap)``.
    alibi_slopes, sinks : tensor, (num_qo_heads,) float32, optional
        As of :meth:`kvctl.PagedKVCache.attention`.
    lse : tensor, (total_new, num_qo_heads) float32, optional
        Receives the natural logarithm of the sum of the scores' exponentials.

    Returns
    -------
    tensor, of q's shape and type
        With four dimensions it is a view of a contiguous (batch, n, num_qo_heads, head_dim), so
        that ``out.transpose(1, 2).reshape(batch, n, -1)`` copies nothing. A token that may look at
        nothing gets zeros.

    Raises
    ------
    RuntimeError
        If no step is in flight.
    ValueError
        If a shape, a type or a device does not fit, or autograd is recording.
    IndexError
        If there is no such layer.
    """
    q, k, v = check_arguments(cache, q, k, v)
    for name, option in (("alibi_slopes", alibi_slopes), ("sinks", sinks), ("lse", lse)):
        if option is not None:
            check_plain(name, option)
    packed = q.dim() == 3
    if not packed:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    heads, kv_heads, dim = cache.num_qo_heads, cache.num_kv_heads, cache.head_dim
    rows = q.shape[:-2]
    qkv = q.new_empty((*rows, heads + 2 * kv_heads, dim))
    torch.cat((q, k, v), -2, out=qkv)  # without `out`, strides of its inputs may come through
    out = q.new_empty((*rows, heads, dim))
    check_plain("q", out)  # it is not inside a mode that only traces
    # Torch tensors as arguments make the call run on torch's current stream.
    ffi.cache.attention(
        cache.handle,
        to_layer(layer),
        qkv if packed else qkv.flatten(0, 1),
        out if packed else out.flatten(0, 1),
        cache.head_dim**-0.5 if scale is None else to_scale(scale),
        soft_cap,
        alibi_slopes,
        sinks,
        lse,
        None,
    )
    return out if packed else out.transpose(1, 2)
