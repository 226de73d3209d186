"""A tokenizer that splits text into the longest of given pieces, and models that write a text."""

from __future__ import annotations

import numpy as np

from fake_runner import VOCABULARY, FakeRunner

TEXT = "the caf\u00e9 at the \u6c34 mill \U0001f600 is the best caf\u00e9 of the town\n"


class Pieces:
    """A tokenizer by longest match.

    Parameters
    ----------
    contents
        The bytes of each token; None for control tokens, whose names are ``<0>``, ``<1>``, ...
    space
        Put a space before a text, as some tokenizers do.
    """

    def __init__(self, contents, *, space=False):
        self.contents, self.space = contents, space
        self.vocab_size = len(contents)
        self._ids = {}
        for id, content in enumerate(contents):
            if content:
                self._ids.setdefault(content, id)
        self._longest = max(map(len, self._ids))

    def token_bytes(self, id):
        return self.contents[id]

    def token(self, id):
        control = [i for i, content in enumerate(self.contents) if content is None]
        return f"<{control.index(id)}>" if id in control else f"token {id}"

    def token_id(self, token):
        control = [i for i, content in enumerate(self.contents) if content is None]
        place = token.strip("<>")
        return control[int(place)] if place.isdigit() and int(place) < len(control) else None

    def encode(self, text, *, special, bos):
        assert special == "literal" and not bos
        content, out = text.encode(), []
        if self.space:
            content = b" " + content
        while content:
            for size in range(min(self._longest, len(content)), 0, -1):
                if (id := self._ids.get(content[:size])) is not None:
                    out.append(id)
                    content = content[size:]
                    break
            else:
                raise ValueError(f"no token begins {content[:4]!r}")
        return out


def pieces(seed, size, *, text=TEXT, control=1, space=False):
    """Return a tokenizer that has every byte of a text, and random parts of it."""
    rng, content = np.random.default_rng(seed), text.encode()
    singles = sorted({bytes([byte]) for byte in content} | {b" ", b"\xef", b"\xbf", b"\xbd"})
    contents = [None] * control + singles
    while len(contents) < size:
        begin = int(rng.integers(len(content)))
        part = content[begin : begin + int(rng.integers(2, 7))]
        if part not in contents:
            contents.append(part)
    assert len(contents) == size
    order = rng.permutation(size)
    return Pieces([contents[i] for i in order], space=space)


class Writer(FakeRunner):
    """Writes a text again and again, in tokens of its own, and goes wrong now and then.

    A context says how far the text is by how many bytes it stands for.
    """

    def __init__(self, tokenizer, *, wrong=0.0, **cache):
        super().__init__(tokens_after=self._token, **cache)
        self.vocab_size = tokenizer.vocab_size
        self._tokenizer, self._wrong = tokenizer, wrong

    def _logits(self, context):
        logits = np.random.default_rng(len(context)).normal(size=self.vocab_size)
        logits[self._token(context)] += 12.0
        return logits.astype(np.float32)

    def _token(self, context):
        contents = [self._tokenizer.token_bytes(token) or b"" for token in context]
        at = (sum(map(len, contents)) - self._tokenizer.space) % len(TEXT.encode())
        rng = np.random.default_rng([at, len(contents[-1])])
        known = self._tokenizer.contents
        if rng.random() < self._wrong:
            return int(rng.choice([id for id, one in enumerate(known) if one and one.isascii()]))
        rest = (TEXT.encode() * 2)[at:]
        fitting = [id for id, one in enumerate(known) if one and rest.startswith(one)]
        return max(fitting, key=lambda id: len(known[id]))


assert VOCABULARY == 40
