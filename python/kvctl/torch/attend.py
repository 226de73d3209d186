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

    Between ``cache.begin_forward`` and ``end_forward``, once for each layer. q, k and v are read
    where they lie, if the heads of a token follow one another in memory, as a projection leaves
    them. Others are copied first, and so they are for a cache that a model library rotates for.
    Under ``torch.compile`` this function breaks the graph; :class:`Attention` does not.

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
    sm_scale = cache.head_dim**-0.5 if scale is None else to_scale(scale)
    # With four dimensions (batch, n, heads, head_dim): a model flattens the heads of each token.
    packed = q.dim() == 3
    out = q.new_empty(q.shape if packed else (q.shape[0], q.shape[2], q.shape[1], q.shape[3]))
    check_plain("q", out)  # it is not inside a mode that only traces
    where, options = (cache.handle, to_layer(layer)), (alibi_slopes, sinks, lse)
    # Torch tensors as arguments make the call run on torch's current stream.
    if not ffi.cache.attend_in_place(*where, q, k, v, out, sm_scale, soft_cap, *options):
        if not packed:
            q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        qkv = torch.cat((q, k, v), 1).contiguous()
        rows = out if packed else out.flatten(0, 1)
        ffi.cache.attend(*where, qkv, rows, sm_scale, soft_cap, *options, None)
    return out if packed else out.transpose(1, 2)
