"""The checks of attention's tensors, before anything changes."""

from __future__ import annotations

from typing import NoReturn

import torch

from ..cache import PagedKVCache
from .tensors import cache_device, refuse_autograd

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_arguments(cache: PagedKVCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise unless q, k and v fit the cache and each other.

    Raises
    ------
    TypeError
        If one is no torch tensor, or the cache no cache.
    ValueError
        If a shape, a type or a device does not fit, or autograd is recording.
    """
    # Called for each layer of each step: whether all is well comes first, and what is wrong last.
    try:
        q_shape, kv_shape = _shapes(cache, q)
        well = q.shape == q_shape and k.shape == kv_shape and v.shape == kv_shape
        well = well and q.dtype is k.dtype is v.dtype and q.dtype in _DTYPES
        device = cache_device(cache)
        well = well and q.device == device and k.device == device and v.device == device
    except AttributeError:
        well = False
    if not well:
        _refuse(cache, q, k, v)
    if torch.is_grad_enabled():
        refuse_autograd(q=q, k=k, v=v)


def _shapes(cache: PagedKVCache, q: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes that q, and k and v, must have."""
    shape, dim = q.shape, cache.head_dim
    if len(shape) == 3:
        return (shape[0], cache.num_qo_heads, dim), (shape[0], cache.num_kv_heads, dim)
    if len(shape) == 4:
        batch, _, rows, _ = shape
        return (batch, cache.num_qo_heads, rows, dim), (batch, cache.num_kv_heads, rows, dim)
    raise ValueError(
        f"q must be (batch, {cache.num_qo_heads}, n, {dim}) or (total_new, "
        f"{cache.num_qo_heads}, {dim}), got {tuple(shape)}"
    )


def _refuse(cache: PagedKVCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> NoReturn:
    if not isinstance(cache, PagedKVCache):
        raise TypeError(f"cache must be a kvctl.PagedKVCache, got {type(cache).__name__}")
    named = {"q": q, "k": k, "v": v}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    q_shape, kv_shape = _shapes(cache, q)
    for name, tensor in named.items():
        shape = q_shape if name == "q" else kv_shape
        if tensor.shape == shape:
            continue
        problem = f"{name} must be {shape}, got {tuple(tensor.shape)}"
        if name != "q" and tensor.shape == q_shape:
            problem += (
                f": the cache has {cache.num_kv_heads} KV heads, each for "
                f"{cache.num_qo_heads // cache.num_kv_heads} query heads; pass k and v before "
                "they are repeated"
            )
        raise ValueError(problem)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ValueError(
            "q, k and v must be of one type, float32, float16 or bfloat16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}"
        )
    raise ValueError(
        f"q, k and v must be on the cache's device, {cache_device(cache)}, got {q.device}, "
        f"{k.device} and {v.device}"
    )
