"""Control tokens told apart: those that a template writes, and the same characters in a message.

A chat template writes its control tokens, ``<|im_end|>`` say, into the same string as what people
said. In one string the two look alike, so what people say is marked before the
template sees it, and after it only the template's own are control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import library

# Unicode's noncharacters, which no text should hold: for use within a program.
_CONTROL, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_CONTROL}{_BEGIN}{_END}]")


class MarkedTokenizer:
    """The same tokenizer, whose control tokens are known by a mark before them.

    Without the mark their characters are characters. So a text is encoded in one piece, whatever
    it says, and its parts influence each other as they do in the original: a prefix space comes
    once.

    Parameters
    ----------
    content
        The contents of a ``tokenizer.json``.
    control
        The texts of the control tokens.
    token_id
        Returns a token's id in the original.
    load
        Makes a library tokenizer of the contents of a ``tokenizer.json``.

    Raises
    ------
    ValueError
        If the tokenizer cannot be changed so.
    """

    def __init__(
        self,
        content: str,
        control: frozenset[str],
        token_id: Callable[[str], int | None],
        load: Callable[[str], Any],
    ) -> None:
        self._library = load(json.dumps(_with_marks(json.loads(content), control)))
        # Longest first: a token comes before those that it contains.
        longest_first = sorted(control, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        ids = ((self._library.token_to_id(_CONTROL + token), token_id(token)) for token in control)
        self._ids = {marked: id for marked, id in ids if id is not None}

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, all of it plain text.

        Raises
        ------
        ValueError
            If the text is not Unicode or holds a mark.
        """
        _check_unmarked(text)
        return self._encode(text)

    def mark(self, value: Any) -> Any:
        """Mark the control tokens in what people say: a string, or a list or dict of such.

        Raises
        ------
        ValueError
            If a string holds a mark already.
        """
        if isinstance(value, str):
            _check_unmarked(value)
            return self._pattern.sub(f"{_BEGIN}\\g<0>{_END}", value)
        if isinstance(value, Mapping):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.mark(item) for item in value]
        return value

    def encode_rendered(self, text: str) -> list[int]:
        """Return the tokens of what a template made of marked messages.

        Raises
        ------
        ValueError
            If the text is not Unicode.
        """
        pieces = re.split(f"{_BEGIN}({self._pattern.pattern}){_END}", text)
        # Every second piece is a control token that somebody said. A template that splits a
        # message may leave one mark without the other: it still keeps its sides apart.
        written = (self._pattern.sub(f"{_CONTROL}\\g<0>", piece) for piece in pieces[::2])
        said = [*pieces[1::2], ""]
        joined = "".join(part for pair in zip(written, said, strict=True) for part in pair)
        return self._encode(joined.replace(_BEGIN, "").replace(_END, ""))

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(id, id) for id in library.encode(self._library, text).ids]


def _check_unmarked(text: str) -> None:
    found = _MARKS.search(text)
    if found is not None:
        raise ValueError(
            f"the text holds U+{ord(found[0]):04X}, a character that Unicode keeps for use within "
            "programs: it cannot be encoded literally"
        )


def _with_marks(content: dict[str, Any], control: frozenset[str]) -> dict[str, Any]:
    """Rename control tokens in a ``tokenizer.json``, so that only a mark leads to them."""

    def renamed(token: Any) -> Any:
        return _CONTROL + token if isinstance(token, str) and token in control else token

    for token in content.get("added_tokens") or []:
        if token["content"] in control:
            # Normalisers drop the mark or change it; what is not normalised is found before them.
            token.update(content=renamed(token["content"]), normalized=False)
    model = content.get("model") or {}
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {renamed(token): id for token, id in vocab.items()}
    elif isinstance(vocab, list):  # Unigram: pairs of a piece and its score
        model["vocab"] = [[renamed(piece), score] for piece, score in vocab]
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, control)]
    content["post_processor"] = None
    return content


def _touches(merge: Any, control: frozenset[str]) -> bool:
    """Whether a merge takes or makes a control token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return not control.isdisjoint((left, right, left + right))
