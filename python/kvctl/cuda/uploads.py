"""What steps send to a CUDA device, and whether the device has what the host thinks it has."""

from __future__ import annotations

from typing import NamedTuple

from .._ffi import functions as ffi
from ..cache import PagedKVCache


class Uploads(NamedTuple):
    """What :func:`read_uploads` found."""

    #: Bytes that the last ``begin_forward`` sent.
    num_bytes: int
    #: Room on the device for what stays there from step to step, in words of 4 bytes.
    num_words: int
    #: Words in which the device differs from what the host takes it to hold: 0, or it is a bug.
    num_different: int
    #: Where the words lie on the device.
    address: int


def read_uploads(cache: PagedKVCache) -> Uploads:
    """Read back what a cache keeps on its device between steps, and compare it with the host's.

    Page tables, positions of tokens and the work items of attention stay on the device, and each
    step sends what has changed. The comparison is of every word; while a step is in flight also of
    its page tables and positions, looked up as attention does. It waits for the device.

    Parameters
    ----------
    cache : PagedKVCache
        The cache, on a CUDA device.

    Returns
    -------
    Uploads
        The bytes of the last step, and how many words differ.

    Raises
    ------
    TypeError
        If it is no cache.
    NotImplementedError
        If the cache is on the CPU.
    """
    if not isinstance(cache, PagedKVCache):
        raise TypeError(f"cache must be a kvctl.PagedKVCache, got {type(cache).__name__}")
    return Uploads(*ffi.cache.get_uploads(cache.handle))
