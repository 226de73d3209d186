"""Texts between two tokenizers, partial characters and control tokens included."""

from __future__ import annotations

import numpy as np
import pytest

from kvctl.draft.model.spelled_text import SpelledText
from kvctl.draft.model.string_map import StringMap
from pieces import TEXT, Pieces, pieces

DRAFT, TARGET = pieces(1, 60), pieces(2, 70)


def joined(tokenizer, tokens):
    return b"".join(tokenizer.token_bytes(token) or b"" for token in tokens)


@pytest.mark.parametrize("seed", range(30))
def test_a_text_is_spelled_as_it_grows(seed):
    """Whatever tokens the target emits: bytes agree, and growing is the same as all at once."""
    rng = np.random.default_rng(seed)
    strings = StringMap(DRAFT, TARGET)
    tokens, text = [], SpelledText(strings)
    for _ in range(20):
        if rng.random() < 0.7:
            tokens += TARGET.encode(TEXT[rng.integers(20) :][:9], special="literal", bos=False)
        else:
            tokens += rng.integers(0, 70, rng.integers(3)).tolist()
        tokens = tokens[: len(tokens) - int(rng.integers(2))] if not text._count else tokens
        text.extend(tokens)
        whole = SpelledText(strings)
        whole.extend(tokens)
        assert text.tokens() == whole.tokens() and text.pending == whole.pending
        spelled = joined(DRAFT, text.tokens()) + text.pending
        assert spelled.decode(errors="replace") == joined(TARGET, tokens).decode(errors="replace")


def test_the_beginning_of_a_character_waits_for_the_rest():
    tokenizer = Pieces([b"a", *(bytes([byte]) for byte in "\U0001f600".encode()), b"\xef\xbf\xbd"])
    text, strings = SpelledText(StringMap(tokenizer, tokenizer)), StringMap(tokenizer, tokenizer)
    text.extend([0, 1, 2])
    assert text.tokens() == [0] and text.pending == "\U0001f600".encode()[:2]
    # The draft model, which has not read these two bytes, writes the character from its beginning.
    drafted = "\U0001f600a".encode()
    assert strings.to_target([0, 1, 2], text.pending, drafted) == [3, 4, 0]
    assert strings.to_target([0, 1, 2], text.pending, b"a") == []
    text.extend([0, 1, 2, 3, 4])
    assert text.tokens() == [0, 1, 2, 3, 4] and text.pending == b""
    text.extend([0, 1, 2, 3, 4, 2, 0])  # no character: the replacement is spelled
    assert text.tokens() == [0, 1, 2, 3, 4, 5, 0]


def test_a_draft_that_ends_within_a_character_loses_its_beginning():
    tokenizer = Pieces([b"a", *(bytes([byte]) for byte in "\u6c34".encode())])
    strings = StringMap(tokenizer, tokenizer)
    assert strings.to_target([0], b"", b"a\xe6\xb0") == [0]
    assert strings.to_target([0], b"", b"\xe6\xb0") == []
    assert strings.to_target([0], b"", "a\u6c34".encode()) == [0, 1, 2, 3]


def test_control_tokens_have_the_same_name_or_none():
    draft = Pieces([b"a", None, b"b"])
    target = Pieces([None, b"b", b"a", None])
    text = SpelledText(StringMap(draft, target))
    text.extend([2, 0, 1, 3, 2])
    assert text.tokens() == [0, 1, 2, 0]  # the target's second control token is unknown


def test_drafts_are_spelled_with_the_text_before_them():
    """A tokenizer whose pieces reach across the boundary, and one that puts a space first."""
    target = Pieces([b"a", b"b", b"ab", b"bb", b" ", b" a"])
    strings = StringMap(target, target)
    assert strings.to_target([0], b"", b"b") == [1]  # "ab" is one token, so "b" alone
    assert strings.to_target([1], b"", b"ab") == [2]
    spaced = StringMap(target, Pieces(target.contents, space=True))
    assert spaced.to_target([0, 1], b"", b"ab") == [2]
    assert spaced.to_target([], b"", b"ab") == []  # a text of its own begins with a space


@pytest.mark.parametrize("seed", range(30))
def test_what_is_drafted_stands_for_the_drafted_bytes(seed):
    rng = np.random.default_rng(seed)
    strings = StringMap(DRAFT, TARGET)
    content = (TEXT * 2).encode()
    for _ in range(20):
        begin = int(rng.integers(40))
        before = TARGET.encode(TEXT[:begin], special="literal", bos=False)
        rest = content[len(joined(TARGET, before)) :][: int(rng.integers(12))]
        tokens = strings.to_target(before, b"", rest)
        assert rest.startswith(joined(TARGET, tokens))
        whole = rest.decode(errors="ignore").encode()
        assert joined(TARGET, tokens) in (b"", whole)
