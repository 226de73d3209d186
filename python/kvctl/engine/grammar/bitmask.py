"""Rows of bits that say which tokens are allowed, as `kvctl.verify` takes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int32]


def all_allowed(rows: int, vocab_size: int) -> Words:
    """Return (rows, ceil(vocab_size / 32)) words that allow every token."""
    words = np.full((rows, -(-vocab_size // 32)), -1, np.int32)
    clear_tail(words, vocab_size)
    return words


def clear_tail(words: Words, vocab_size: int) -> None:
    """Clear the bits of rows that stand for no token."""
    if vocab_size % 32:
        words[:, -1] &= (1 << vocab_size % 32) - 1


def allows(row: Words, token: int) -> bool:
    """Return whether a row (W,) allows a token."""
    return bool(int(row[token // 32]) >> token % 32 & 1)


def only_token(row: Words) -> int | None:
    """Return the token of a row that allows exactly one; None if it allows none or more."""
    used = np.flatnonzero(row)
    if len(used) != 1:
        return None
    word = int(row[used[0]]) & 0xFFFFFFFF
    if word & (word - 1):
        return None
    return 32 * int(used[0]) + word.bit_length() - 1
