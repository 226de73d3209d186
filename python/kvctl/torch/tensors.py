"""Tensors of PyTorch and of the cache that share their memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import tvm_ffi

from ..cache import PagedKVCache


def from_cache(tensor: Any) -> torch.Tensor:
    """Return a tensor of kvctl's, or of anything with DLPack, as torch sees it. Copies nothing.

    Its memory is the tensor's own: what ``cache.query_positions()`` returns, the next step
    overwrites.
    """
    return torch.from_dlpack(tensor)


def to_cache(tensor: torch.Tensor) -> tvm_ffi.Tensor:
    """Return a torch tensor as kvctl's functions take it. Copies nothing.

    kvctl's functions also take torch tensors as they are.

    Raises
    ------
    TypeError
        If it is no torch tensor.
    ValueError
        If autograd records what is done to it.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"the tensor must be a torch.Tensor, got {type(tensor).__name__}")
    refuse_autograd(tensor=tensor)
    return tvm_ffi.from_dlpack(tensor.detach())


def refuse_autograd(**tensors: torch.Tensor) -> None:
    """Raise unless autograd lets these tensors alone.

    Raises
    ------
    ValueError
        If autograd records what is done to one of them.
    """
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(
                f"{name} requires grad and autograd is recording, but the cache has no backward "
                "pass: run the model under torch.inference_mode() or torch.no_grad()"
            )


def cache_device(cache: PagedKVCache) -> torch.device:
    """Return the device of a cache's pages."""
    kind, index = cache.device.type, cache.device.index
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, index)


def stream_of(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which kvctl's work goes to the stream that torch uses on a device."""
    if device.type != "cuda":
        return nullcontext()
    return tvm_ffi.use_raw_stream(
        tvm_ffi.device(str(device)), torch.cuda.current_stream(device).cuda_stream
    )
