"""A tokenizer: text to tokens and back, with special tokens as control or as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any, Literal

from .._ffi.untrusted import read_text
from . import library
from .marked import MarkedTokenizer
from .stream import TextStream
from .token_bytes import spelling_of, token_bytes

Special = Literal["parse", "literal"]


class Tokenizer:
    """A ``tokenizer.json``, read by the library ``tokenizers``.

    Truncation and padding that the file asks for are switched off: a prompt is encoded whole.

    Parameters
    ----------
    content
        The contents of a ``tokenizer.json``.
    name
        What errors call it.

    Raises
    ------
    ValueError
        If `content` is no tokenizer.
    """

    def __init__(self, content: str, *, name: str = "tokenizer.json") -> None:
        self._name = name
        self._library = library.load(content, name)
        self._marked: dict[frozenset[str], MarkedTokenizer] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json``, or the one of a directory.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        ValueError
            If it is a Git LFS pointer, or no tokenizer.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        return cls(read_text(path), name=str(path))

    @cached_property
    def vocab_size(self) -> int:
        """The number of token ids: the highest one, and one more."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens and their ids: what ``special="literal"`` reads as plain text."""
        added = self._library.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """All tokens that are looked for before a text is split, the special ones among them."""
        added = self._library.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items()}

    @cached_property
    def bos_tokens(self) -> list[int]:
        """The tokens that the tokenizer puts before a text: one, none, or rarely more."""
        for probe in ("a", *islice(self._library.get_vocab(with_added_tokens=False), 20)):
            try:
                encoding = library.encode(self._library, probe, add_special_tokens=True)
            except ValueError:
                continue  # the probe has no tokens
            mask = encoding.special_tokens_mask
            if 0 in mask:
                return list(encoding.ids[: mask.index(0)])
        return []

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text, or None where there is no such token."""
        id: int | None = self._library.token_to_id(token)
        return id

    def token(self, id: int) -> str | None:
        """Return a token's text as the vocabulary has it, or None where there is no such id."""
        token: str | None = self._library.id_to_token(index(id)) if index(id) >= 0 else None
        return token

    def token_bytes(self, id: int) -> bytes | None:
        """Return what a token stands for in the middle of a text, or None where it has no text.

        Special tokens control, and have none.
        """
        token = self.token(id)
        if token is None or token in self.special_tokens:
            return None
        return token_bytes(token, self._spelling)

    @cached_property
    def _spelling(self) -> str:
        return spelling_of(self._library.decoder)

    def encode(
        self,
        text: str,
        *,
        special: Special = "parse",
        bos: bool = True,
        control: Iterable[str] = (),
    ) -> list[int]:
        """Return the tokens of a text.

        Parameters
        ----------
        text
            Any text.
        special
            What a special token's text, ``<|im_end|>`` say, becomes: "parse" makes it the token;
            "literal" encodes its characters as it encodes any others, so that a text that came
            from outside controls nothing.
        bos
            Whether the tokenizer's first token comes first, where it has one. A text that begins
            with it already does not get it twice.
        control
            More tokens that "literal" must not make, beside `special_tokens`: some models have
            control tokens that their tokenizer.json does not call special.

        Returns
        -------
        list of int
            The tokens.

        Raises
        ------
        ValueError
            If `special` has another value, the text holds half a surrogate pair, or the tokenizer
            fails.
        """
        if special == "parse":
            tokens = self._encode(text)
        elif special == "literal":
            tokens = self.marked(control).encode(text)
        else:
            raise ValueError(f'special must be "parse" or "literal", not {special!r}')
        first = self.bos_tokens if bos else []
        return tokens if tokens[: len(first)] == first else [*first, *tokens]

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of tokens.

        Parameters
        ----------
        tokens
            Token ids; one that the tokenizer lacks (a padded row of the model's) has no text.
        skip_special
            Whether to leave special tokens out.

        Raises
        ------
        ValueError
            If an id is negative or beyond 32 bits, or the tokenizer fails.
        """
        ids = library.check_ids(tokens)
        with library.refusing("the tokenizer cannot decode these tokens"):
            text: str = self._library.decode(ids, skip_special_tokens=skip_special)
        return text

    def stream(self, *, skip_special: bool = False) -> TextStream:
        """Return a decoder of tokens that come in pieces; see `TextStream`."""
        return TextStream(self, skip_special=skip_special)

    def marked(self, control: Iterable[str] = ()) -> MarkedTokenizer:
        """Return the tokenizer that knows control tokens by a mark, made when first asked for."""
        wanted = frozenset(self.special_tokens) | (frozenset(control) & self.added_tokens.keys())
        if wanted not in self._marked:
            content = self._library.to_str()
            self._marked[wanted] = MarkedTokenizer(content, wanted, self.token_id, self._load)
        return self._marked[wanted]

    @property
    def decoder(self) -> Any:
        """The library's decoder, or None."""
        return self._library.decoder

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = library.encode(self._library, text).ids
        return ids

    def _load(self, content: str) -> Any:
        return library.load(content, self._name)
