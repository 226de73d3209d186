"""Files that somebody else wrote: whatever one leads a reader to is the file's fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn errors that a damaged file leads to into a ``ValueError`` that names it.

    A ``ValueError`` passes as it is, having been raised on purpose, and so do an ``OSError``, a
    ``MemoryError`` and a ``NotImplementedError``.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, NotImplementedError):
        raise
    except Exception as error:
        raise ValueError(f"{what} is damaged: {type(error).__name__}: {error}") from error
