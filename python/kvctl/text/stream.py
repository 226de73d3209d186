"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from .decoding import make_stages
from .library import check_ids
from .stop import StopStrings

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class TextStream:
    """Text from tokens as they come, the same as all tokens decoded at once, always.

    What a later token could change is held back: bytes that are not a whole character yet, and
    with byte-fallback tokenizers (``<0xE2>``) a run of bytes until it ends, since one bad byte
    replaces all of it.

    Parameters
    ----------
    tokenizer
        Whose tokens they are.
    skip_special
        Whether to leave special tokens out.
    stop_tokens
        Tokens that end the text. They are not part of it, nor is anything behind them.
    stop_strings
        Strings that end the text, likewise; no part of one is returned.

    Raises
    ------
    ValueError
        If a stop string is empty.

    Examples
    --------
    >>> stream = text.stream()                       # doctest: +SKIP
    >>> for token in tokens:                         # doctest: +SKIP
    ...     print(stream.push(token), end="")
    >>> print(stream.finish())                       # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = False,
        stop_tokens: Collection[int] = (),
        stop_strings: Iterable[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = set(tokenizer.special_tokens.values()) if skip_special else set()
        self._stop_tokens = frozenset(stop_tokens)
        self._stop_strings = StopStrings(stop_strings)
        self._stop_token: int | None = None
        self._stages = make_stages(tokenizer.decoder)

    @property
    def stopped_by(self) -> int | str | None:
        """The stop token or stop string that ended the text, or None."""
        return self._stop_token if self._stop_token is not None else self._stop_strings.found

    def push(self, tokens: int | Iterable[int]) -> str:
        """Add tokens; return the text that is now certain.

        Tokens behind the end of the text are dropped.

        Raises
        ------
        ValueError
            If an id is negative or beyond 32 bits.
        """
        ids = check_ids(tokens if isinstance(tokens, Iterable) else [tokens])
        return "".join(self._push(id) for id in ids)

    def finish(self) -> str:
        """Return what was held back; for once, when all tokens have come."""
        return self._pass_on(self._flush()) + self._stop_strings.finish()

    def _push(self, id: int) -> str:
        if self.stopped_by is not None:
            return ""
        if id in self._stop_tokens:
            text = self.finish()
            # A stop string that was complete came first.
            if self._stop_strings.found is None:
                self._stop_token = id
            return text
        token = self._tokenizer.token(id)
        if token is None or id in self._skipped:
            return ""
        strings = [token]
        for stage in self._stages:
            strings = [out for string in strings for out in stage.push(string)]
        return self._pass_on(strings)

    def _pass_on(self, strings: Sequence[str]) -> str:
        return self._stop_strings.push("".join(strings))

    def _flush(self) -> list[str]:
        strings: list[str] = []
        for stage in self._stages:
            strings = [out for string in strings for out in stage.push(string)] + stage.finish()
        return strings
