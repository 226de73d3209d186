"""Calls of the library ``tokenizers``, whose errors become sentences."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any


def encode(library: Any, text: str) -> list[int]:
    """Return the tokens of a text, without those that a post-processor adds.

    Raises
    ------
    ValueError
        If the text holds half a surrogate pair.
    """
    try:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
    except (TypeError, UnicodeEncodeError) as error:
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}") from None
        raise ValueError(f"the text holds half a surrogate pair: {error}") from None
    return ids


def check_ids(tokens: Sequence[int]) -> list[int]:
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

    try:
        library = tokenizers.Tokenizer.from_str(content)
        library.no_truncation()
        library.no_padding()
    except BaseException as error:
        # A panic of the library derives from BaseException alone.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{name} is no tokenizer: {error}") from None
    return library
