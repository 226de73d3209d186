"""The bytes that a token stands for in the middle of a text."""

from __future__ import annotations

import re
from typing import Any

from .decoding import byte_of, flat_kinds

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def spelling_of(decoder: Any) -> str:
    """Return how a tokenizer spells its tokens: "bytes", "words" or "text"."""
    kinds = {kind["type"] for kind in flat_kinds(decoder)}
    if "ByteLevel" in kinds:
        return "bytes"
    return "words" if kinds & {"Metaspace", "Replace", "ByteFallback"} else "text"


def token_bytes(token: str, spelling: str) -> bytes:
    """Return the bytes of a token.

    Parameters
    ----------
    token
        As the vocabulary has it.
    spelling
        "bytes": in the byte-level alphabet (GPT-2's). "words": SentencePiece's, with ``▁`` for a
        space and ``<0xE2>`` for a byte. "text": as it is.
    """
    if spelling == "bytes":
        alphabet = byte_of()
        if all(char in alphabet for char in token):
            return bytes(alphabet[char] for char in token)
    elif spelling == "words":
        if found := _BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        return token.replace("▁", " ").encode()
    return token.encode()
