"""A text that grows in the target's tokens, spelled in the draft model's."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence

from .string_map import StringMap


class SpelledText:
    """The draft model's tokens of a text, from its beginning.

    Between control tokens the text is spelled anew as it grows, since its last tokens may be others
    when more follows. A control token stands for the draft model's of the same name, or for none.
    Bytes that are no UTF-8 are spelled as the replacement character; the beginning of a character
    waits for the rest.

    Parameters
    ----------
    strings
        How texts are spelled.
    """

    def __init__(self, strings: StringMap) -> None:
        self._strings = strings
        self._count = 0
        self._tokens: list[int] | None = None  # what `tokens` returned, while nothing came since
        self._closed: list[int] = []  # the tokens up to the last control token, that one included
        self._begin()

    def extend(self, tokens: Sequence[int]) -> None:
        """Read what a text has grown by; `tokens` is all of it."""
        for token in tokens[self._count :]:
            content = self._strings.target_bytes(token)
            if content is None:
                self._text += self._decoder.decode(b"", final=True)
                self._closed += self._strings.to_draft(self._text)
                own = self._strings.control(token)
                self._closed += [] if own is None else [own]
                self._begin()
            else:
                self._text += self._decoder.decode(content)
        if len(tokens) > self._count:
            self._tokens = None
        self._count = len(tokens)

    @property
    def pending(self) -> bytes:
        """The bytes at the end that are the beginning of a character; no draft token has them."""
        return self._decoder.getstate()[0]

    def tokens(self) -> list[int]:
        """Return the text in the draft model's tokens, but for the pending bytes."""
        if self._tokens is None:
            self._tokens = self._closed + self._strings.to_draft(self._text)
        return self._tokens

    def _begin(self) -> None:
        """Begin a part between control tokens."""
        self._text = ""
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
