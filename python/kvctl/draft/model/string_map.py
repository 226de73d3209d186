"""Texts between two tokenizers: what one spelled, in the tokens of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .vocabulary_map import VocabularyTokenizer

# Tokens before a draft that it is spelled together with: tokenizers split by what is near.
_CONTEXT = 8


class StringTokenizer(VocabularyTokenizer, Protocol):
    """What a string map asks of a tokenizer; `kvctl.text.Tokenizer` has it."""

    def token(self, id: int) -> str | None:
        """Return a token's text as the vocabulary has it; None where there is no such id."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text; None where there is no such token."""
        ...


class StringMap:
    """Spells a target's text for a draft model, and the draft model's text for the target.

    The two need not share a token: what they share is text, and in the end bytes (string-level
    exact match, arXiv 2502.05202).

    Parameters
    ----------
    draft_tokenizer, target_tokenizer
        `kvctl.text.Tokenizer`, ``runner.text.tokenizer``, or others with the same methods.
    """

    def __init__(self, draft_tokenizer: StringTokenizer, target_tokenizer: StringTokenizer) -> None:
        self._draft, self._target = draft_tokenizer, target_tokenizer
        self._controls: dict[int, int | None] = {}

    @property
    def draft_size(self) -> int:
        """The number of the draft tokenizer's tokens."""
        return self._draft.vocab_size

    def target_bytes(self, token: int) -> bytes | None:
        """Return what a target's token stands for; None for control tokens."""
        return self._target.token_bytes(token)

    def draft_bytes(self, token: int) -> bytes | None:
        """Return what a draft model's token stands for; None for control tokens."""
        return self._draft.token_bytes(token)

    def control(self, token: int) -> int | None:
        """Return the draft model's control token of the same name as a target's; None without."""
        if token not in self._controls:
            name = self._target.token(token)
            own = None if name is None else self._draft.token_id(name)
            known = own is not None and self._draft.token_bytes(own) is None
            self._controls[token] = own if known else None
        return self._controls[token]

    def to_draft(self, text: str) -> list[int]:
        """Return a text in the draft model's tokens; nothing where its tokenizer refuses it."""
        try:
            return self._draft.encode(text, special="literal", bos=False) if text else []
        except ValueError:
            return []

    def to_target(self, before: Sequence[int], pending: bytes, drafted: bytes) -> list[int]:
        """Return drafted bytes in the target's tokens.

        Parameters
        ----------
        before
            The target's tokens that the drafted bytes follow, as many as there are; the last
            `pending` bytes of them are the beginning of a character.
        pending
            Those bytes: the draft model did not read them, so its text must begin with them.
        drafted
            The draft model's text; it may end within a character, whose bytes are left out.

        Returns
        -------
        list of int
            Tokens that stand for the drafted bytes behind `pending`. Empty if the draft goes on in
            another way, or the target's tokenizer spells no boundary there.
        """
        if not drafted.startswith(pending):
            return []
        new = _whole_characters(drafted)[len(pending) :]
        if not new:
            return []
        context: list[bytes] = []
        for token in reversed(before[-_CONTEXT:]):
            content = self._target.token_bytes(token)
            if content is None:
                break
            context.insert(0, content)
        while context and _begins_within(b"".join(context)):
            del context[0]
        for known in (b"".join(context), b"") if context else (b"",):
            tokens = self._behind(known, new)
            if tokens:
                return tokens
        return []

    def _behind(self, known: bytes, new: bytes) -> list[int]:
        """Return the target's tokens of `new` behind `known`; none if none begins there."""
        whole = known + new
        try:
            tokens = self._target.encode(whole.decode(), special="literal", bos=False)
        except ValueError:  # no text, or none that the tokenizer takes
            return []
        contents = [self._target.token_bytes(token) or b"" for token in tokens]
        spelled = b"".join(contents)
        if not spelled.endswith(whole):
            return []  # the tokenizer changes texts
        # Some tokenizers put a space before a text.
        missing = len(spelled) - len(new)
        for i, content in enumerate(contents):
            if missing == 0:
                return tokens[i:]
            missing -= len(content)
        return []


def _whole_characters(content: bytes) -> bytes:
    """Return bytes without the beginning of a character at their end."""
    for length in range(1, min(3, len(content)) + 1):
        lead = content[-length]
        if lead < 0x80:
            break
        if lead >= 0xC0:
            size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return content[:-length] if size > length else content
    return content


def _begins_within(content: bytes) -> bool:
    """Return whether bytes begin in the middle of a character."""
    return bool(content) and 0x80 <= content[0] < 0xC0
