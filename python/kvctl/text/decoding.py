"""Decoding piece by piece: each stage of a tokenizer's decoder, as tokens come.

A decoder of the library ``tokenizers`` is a chain. Each stage takes all tokens of a text as strings
and returns strings; what the last one returns is joined. A stage here takes them as they come and
returns what no later token can change. So what all calls return together is what decoding at once
returns, by construction and not by looking back a few tokens: a run of byte tokens that begins
well and ends badly is replaced as a whole, and no window is wide enough for it.

``tokenizers.decoders.DecodeStream`` looks back. It holds text back while it ends in U+FFFD, so it
gives another text than decoding at once where bytes are broken for good.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import lru_cache
from typing import Any, Protocol

# Rust's number parser takes a sign, too.
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f+][0-9A-Fa-f]>")


class Stage(Protocol):
    """One stage of a decoder."""

    def push(self, token: str) -> list[str]:
        """Take a token; return the strings that are certain now."""
        ...

    def finish(self) -> list[str]:
        """Return what was held back."""
        ...


def make_stages(decoder: Any) -> list[Stage]:
    """Return the stages of a ``tokenizers`` decoder, or of None."""
    if decoder is None:
        return [_Spaces()]
    stages: list[Stage] = []
    kinds = flat_kinds(decoder)
    fused = False
    for i, kind in enumerate(kinds):
        stage = _make(kind, fused)
        if stage is None:
            # It needs the whole text: so do all that follow it.
            return [*stages, _Everything([{"type": "Fuse"}, *kinds[i:]] if fused else kinds[i:])]
        stages.append(stage)
        fused = fused or kind["type"] in ("Fuse", "ByteLevel")
    return stages


def flat_kinds(decoder: Any) -> list[dict[str, Any]]:
    """Return what a ``tokenizers`` decoder does, stage after stage; nothing of None."""
    return [] if decoder is None else _flatten(json.loads(decoder.__getstate__()))


def _flatten(kind: dict[str, Any]) -> list[dict[str, Any]]:
    if kind["type"] != "Sequence":
        return [kind]
    return [inner for part in kind["decoders"] for inner in _flatten(part)]


def _make(kind: dict[str, Any], fused: bool) -> Stage | None:
    """Return a stage, or None for one that must see everything."""
    name = kind["type"]
    if name == "Fuse":
        return _PassOn()
    if fused:
        # What comes is one string in parts.
        return _StripOne(kind) if name == "Strip" else None
    if name == "ByteLevel":
        return _ByteLevel()
    if name == "ByteFallback":
        return _ByteFallback(_decoder(kind))
    if name in ("Strip", "Replace"):
        return _EachAlone(_decoder(kind))
    if name in ("Metaspace", "WordPiece"):
        return _FirstApart(_decoder(kind))
    if name == "BPEDecoder":
        return _LastApart(_decoder(kind))
    return None


def _decoder(kind: dict[str, Any]) -> Any:
    """Return the library's decoder of a description."""
    import tokenizers

    content = {"version": "1.0", "added_tokens": [], "decoder": kind}
    content["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    return tokenizers.Tokenizer.from_str(json.dumps(content)).decoder


class _PassOn:
    """Joining is what happens in the end."""

    def push(self, token: str) -> list[str]:
        return [token]

    def finish(self) -> list[str]:
        return []


class _Spaces(_PassOn):
    """No decoder: a space between tokens."""

    def __init__(self) -> None:
        self._before = ""

    def push(self, token: str) -> list[str]:
        before, self._before = self._before, " "
        return [before + token]


class _EachAlone(_PassOn):
    """A stage that looks at one token at a time."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def push(self, token: str) -> list[str]:
        return [self._decoder.decode([token])]


class _FirstApart(_PassOn):
    """A stage that treats the first token in its own way."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._is_first = True

    def push(self, token: str) -> list[str]:
        is_first, self._is_first = self._is_first, False
        return [self._decoder.decode([token] if is_first else ["", token])]


class _LastApart:
    """A stage that treats the last token in its own way."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._held: list[str] = []

    def push(self, token: str) -> list[str]:
        held, self._held = self._held, [token]
        return [self._decoder.decode([*held, ""])] if held else []

    def finish(self) -> list[str]:
        held, self._held = self._held, []
        return [self._decoder.decode(held)] if held else []


class _ByteLevel:
    """Tokens spelled in the byte-level alphabet: bytes, joined, read as UTF-8."""

    def __init__(self) -> None:
        self._bytes = byte_of()
        self._reset()

    def _reset(self) -> None:
        # Replaces what Rust's String::from_utf8_lossy replaces: Unicode's maximal subparts.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: str) -> list[str]:
        try:
            content = bytes(self._bytes[char] for char in token)
        except KeyError:
            content = token.encode()  # an added token: text as it is
        return [self._utf8.decode(content)]

    def finish(self) -> list[str]:
        rest = self._utf8.decode(b"", final=True)
        self._reset()
        return [rest]


class _ByteFallback:
    """Tokens like ``<0xE2>``: a run of them is UTF-8 as a whole, or all of it is replaced."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._run: list[str] = []

    def push(self, token: str) -> list[str]:
        if _BYTE_TOKEN.fullmatch(token):
            self._run.append(token)
            return []
        return [*self.finish(), token]

    def finish(self) -> list[str]:
        run, self._run = self._run, []
        text = self._decoder.decode(run) if run else ""
        # One string where the bytes are UTF-8, one for each byte where they are not.
        return [*text] if text == "\ufffd" * len(run) else [text]


class _StripOne:
    """Stripping one string that comes in parts."""

    def __init__(self, kind: dict[str, Any]) -> None:
        self._char, self._left, self._stop = kind["content"], kind["start"], kind["stop"]
        self._held = ""
        self._begun = False

    def push(self, token: str) -> list[str]:
        text = self._held + token
        while not self._begun and self._left and text.startswith(self._char):
            text, self._left = text[1:], self._left - 1
        self._begun = self._begun or bool(text) or not self._left
        kept = len(text)
        while kept and len(text) - kept < self._stop and text[kept - 1] == self._char:
            kept -= 1
        self._held = text[kept:]
        return [text[:kept]]

    def finish(self) -> list[str]:
        # All that is held may go: at most `stop` characters are.
        self._held = ""
        return []


class _Everything:
    """Stages that must see all tokens."""

    def __init__(self, kinds: list[dict[str, Any]]) -> None:
        self._decoder = _decoder({"type": "Sequence", "decoders": kinds})
        self._held: list[str] = []

    def push(self, token: str) -> list[str]:
        self._held.append(token)
        return []

    def finish(self) -> list[str]:
        held, self._held = self._held, []
        return [self._decoder.decode(held)] if held else []


@lru_cache
def byte_of() -> dict[str, int]:
    """Return the byte that each character of the byte-level alphabet stands for.

    A printable character of Latin-1 stands for its own byte; the others follow in order.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    rest = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(alphabet[len(own) :], rest, strict=True))
