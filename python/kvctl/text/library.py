"""Calls of the library ``tokenizers``, whose errors become sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import index
from typing import Any


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn the library's errors, and its panics, into a ``ValueError`` that begins with `what`."""
    try:
        yield
    except (ValueError, TypeError, MemoryError):
        raise
    except BaseException as error:
        # A panic derives from BaseException alone.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from None


def encode(library: Any, text: str, *, add_special_tokens: bool = False) -> Any:
    """Return the library's encoding of a text.

    Raises
    ------
    ValueError
        If the text holds half a surrogate pair, or the tokenizer fails.
    TypeError
        If it is no str.
    """
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds half a surrogate pair: {error}") from None
    with refusing("the tokenizer cannot encode this text"):
        return library.encode(text, add_special_tokens=add_special_tokens)


def check_ids(tokens: Iterable[int]) -> list[int]:
    """Return token ids as plain integers.

    Raises
    ------
    ValueError
        If one is negative or beyond 32 bits.
    """
    ids = [index(token) for token in tokens]
    if ids and (min(ids) < 0 or max(ids) >= 1 << 32):
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise ValueError(f"token {wrong} is no token: ids are from 0 to 4294967295")
    return ids


def load(content: str, name: str) -> Any:
    """Return the library's tokenizer of a ``tokenizer.json``.

    Raises
    ------
    ValueError
        If `content` is no tokenizer.
    """
    import tokenizers

    with refusing(f"{name} is no tokenizer"):
        library = tokenizers.Tokenizer.from_str(content)
        library.no_truncation()
        library.no_padding()
    return library
