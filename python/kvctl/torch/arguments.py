"""The checks of attention's tensors, before anything changes."""

from __future__ import annotations

import math
import operator
from typing import NoReturn

import torch

from ..cache import PagedKVCache
from .tensors import cache_device, refuse_autograd

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Others, FakeTensor and DTensor among them, may have no memory of their own to read.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def check_arguments(
    cache: PagedKVCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k and v, which fit the cache and each other, under autocast in one type.

    Raises
    ------
    TypeError
        If one is no torch tensor, or the cache no cache.
    ValueError
        If a shape, a type or a device does not fit, or autograd is recording.
    """
    # Called for each layer of each step: whether all is well comes first, and what is wrong last.
    if not _fit(cache, q, k, v):
        try:
            q, k, v = autocast(q, k, v)
        except AttributeError:
            pass  # one is no tensor
        if not _fit(cache, q, k, v):
            _refuse(cache, q, k, v)
    if torch.is_grad_enabled():
        refuse_autograd(q=q, k=k, v=v)
    return q, k, v


def _fit(cache: PagedKVCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    try:
        q_shape, kv_shape = _shapes(cache, q)
        device = cache_device(cache)
        return (
            (q.shape == q_shape and k.shape == kv_shape and v.shape == kv_shape)
            and (q.dtype is k.dtype is v.dtype and q.dtype in _DTYPES)
            and (type(q) in _PLAIN and type(k) in _PLAIN and type(v) in _PLAIN)
            and (q.layout is k.layout is v.layout is torch.strided)
            and (q.device == device and k.device == device and v.device == device)
        )
    except AttributeError:
        return False


def autocast(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors of several types in autocast's type, if that is on; others as they are.

    Under autocast a model rotates q and k in float32 and leaves v in bfloat16, for example.
    """
    device = q.device.type
    if q.dtype is k.dtype is v.dtype or not torch.is_autocast_enabled(device):
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def check_plain(name: str, tensor: object) -> None:
    """Raise unless a tensor has memory that the cache can read.

    Raises
    ------
    TypeError
        If it is no plain torch tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
        kind = type(tensor).__name__ if type(tensor) not in _PLAIN else tensor.layout
        raise TypeError(
            f"{name} must be a plain torch.Tensor, got {kind}; a model that is traced or exported "
            "takes kvctl.torch.Attention"
        )


def to_layer(layer: object) -> int:
    """Return a layer's number.

    Raises
    ------
    TypeError
        If it is no integer.
    """
    try:
        return operator.index(layer)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"layer must be an integer, got {layer!r}") from None


def to_scale(scale: object) -> float:
    """Return what scores are multiplied by.

    Raises
    ------
    TypeError, ValueError
        If it is no finite number.
    """
    try:
        number = math.ldexp(scale, 0)  # type: ignore[arg-type]
    except TypeError:  # unlike float, ldexp takes no strings
        raise TypeError(f"scale must be a number, got {scale!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"scale must be finite, got {number}")
    return number


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
        check_plain(name, tensor)
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
