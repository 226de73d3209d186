"""Strings that end a text, found as it comes."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Passes a text on until one of several strings is complete.

    What may be the beginning of a stop string is held back, so no part of one is ever passed on.
    How the text is cut into pieces changes nothing. The string that is complete first ends the
    text; of several that end at the same character, the longest.

    Parameters
    ----------
    strings
        What ends the text; none passes everything on.

    Raises
    ------
    TypeError
        If `strings` is one string, or holds something else.
    ValueError
        If one is empty.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        if isinstance(strings, str):
            raise TypeError("stop strings must be several, [text] say, not one str")
        self._strings = tuple(dict.fromkeys(strings))
        for string in self._strings:
            if not isinstance(string, str):
                raise TypeError(f"a stop string must be a str, not {type(string).__name__}")
            if not string:
                raise ValueError("a stop string must not be empty: every text would end at once")
        self._held = ""
        self._found: str | None = None

    @property
    def found(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._found

    def push(self, text: str) -> str:
        """Add a piece of text; return what is certain not to belong to a stop string.

        Behind a stop string everything is dropped.
        """
        if self._found is not None:
            return ""
        text = self._held + text
        found = [(text.find(string), string) for string in self._strings]
        ends = [(begin + len(string), begin, string) for begin, string in found if begin >= 0]
        if ends:
            _, begin, self._found = min(ends)
            self._held = ""
            return text[:begin]
        kept = len(text) - max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """Return what was held back: the text ended before a stop string was complete."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return how much of a string's beginning the text ends with."""
    for size in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:size]):
            return size
    return 0
