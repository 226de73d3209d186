"""A step of the cache around a torch model's forward, and which cache that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from ..cache import PagedKVCache
from .tensors import cache_device, from_cache, stream_of

# Of the thread, or of the task in asyncio, that runs the step.
_current: ContextVar[PagedKVCache | None] = ContextVar("kvctl.torch.cache", default=None)


def current_cache() -> PagedKVCache:
    """Return the cache of the innermost :func:`forward` of this thread (or asyncio task).

    Raises
    ------
    RuntimeError
        If there is none.
    """
    cache = _current.get()
    if cache is None:
        raise RuntimeError(
            "attention has no cache here: run the model in `with kvctl.torch.forward(cache, "
            "seq_ids, lengths):`, in the same thread"
        )
    return cache


@contextmanager
def forward(
    cache: PagedKVCache, seq_ids: Sequence[int], append_lengths: Sequence[int], **options: Any
) -> Iterator[torch.Tensor]:
    """Run a step as a context: ended when the block ends, aborted when it raises.

    In the block, :class:`Attention` modules attend over this cache. On CUDA, what the cache does at
    the step's beginning and end goes to the stream that is torch's when the block begins.

    Parameters
    ----------
    cache : PagedKVCache
        The cache.
    seq_ids, append_lengths, **options
        As of :meth:`kvctl.PagedKVCache.begin_forward`: ``mask``, ``positions``, ``pending``.

    Yields
    ------
    tensor, (total_new,) int64
        The positions of the new tokens, on the cache's device, for the model's RoPE.

    Raises
    ------
    KeyError, ValueError, kvctl.OutOfPagesError
        As :meth:`kvctl.PagedKVCache.begin_forward`.
    """
    if not isinstance(cache, PagedKVCache):
        raise TypeError(f"cache must be a kvctl.PagedKVCache, got {type(cache).__name__}")
    with (
        stream_of(cache_device(cache)),
        cache.forward(seq_ids, append_lengths, **options),
    ):
        positions = from_cache(cache.query_positions()).to(torch.int64)
        token = _current.set(cache)
        try:
            yield positions
        finally:
            _current.reset(token)
