"""What a ``tokenizer.json`` says of a model's vocabulary: which ids are tokens, and which none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....text import library

# Kinds of tokens in GGUF files.
_UNUSED = 5

# Whatever a tokenizer splits text by meets letters, digits, punctuation, spaces and other scripts.
_PROBE = "Hello, world's 1234\n\t  (naïve) 漢字 🙂" + " a" * 64 + "a" * 64


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer beside those of its model.

    Attributes
    ----------
    unused : tuple of int
        Ids of the model that are no tokens, ascending: padding of its output layer.
    beyond : int
        Added tokens whose ids the model does not have.
    """

    unused: tuple[int, ...]
    beyond: int


def read_vocabulary(tokenizer_json: str, vocab_size: int, what: str) -> Vocabulary:
    """Compare a tokenizer with the size of a model's vocabulary.

    Parameters
    ----------
    tokenizer_json : str
        Contents of the file.
    vocab_size : int
        Ids that the model has.
    what : str
        What messages call the tokenizer.

    Raises
    ------
    ValueError
        If the tokenizer is damaged or empty, or has tokens, other than added ones, that the model
        does not have.
    """
    tokenizer = _load(tokenizer_json, what)
    base = set(tokenizer.get_vocab(with_added_tokens=False).values())
    ids = set(tokenizer.get_vocab(with_added_tokens=True).values()) | base
    if not ids:
        raise ValueError(f"{what} has no tokens")
    if base and max(base) >= vocab_size:
        raise ValueError(
            f"{what} is another model's: its ids go up to {max(base)}, the model has {vocab_size}"
        )
    unused = tuple(index for index in range(vocab_size) if index not in ids)
    if len(unused) == vocab_size:
        raise ValueError(f"{what} has no token among the model's {vocab_size} ids")
    return Vocabulary(unused, sum(index >= vocab_size for index in ids))


def check_same_vocabulary(
    tokenizer_json: str, what: str, metadata: Mapping[str, Any], gguf: str
) -> None:
    """Make sure that a ``tokenizer.json`` is that of a GGUF file which lists its tokens.

    Parameters
    ----------
    tokenizer_json : str
        Contents of the file.
    what : str
        What messages call it.
    metadata : mapping
        Of the GGUF file.
    gguf : str
        What messages call that.

    Raises
    ------
    ValueError
        If the two have different numbers of tokens, or most of them are different texts.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return
    theirs = {index: text for text, index in _load(tokenizer_json, what).get_vocab().items()}
    types = metadata.get("tokenizer.ggml.token_type", [])
    ours = {index: text for index, text in enumerate(tokens) if not is_padding(index, text, types)}
    if len(theirs) != len(ours) or max(theirs, default=-1) >= len(tokens):
        raise ValueError(
            f"{what} is another model's: it has {len(theirs)} tokens up to id "
            f"{max(theirs, default=-1)}, {gguf} has {len(ours)} up to {max(ours, default=-1)}"
        )
    same = sum(theirs.get(index) == text for index, text in ours.items())
    if 2 * same < len(ours):
        raise ValueError(
            f"{what} is another model's: of its {len(theirs)} tokens {same} are those of {gguf}"
        )


def is_padding(index: int, text: str, types: list[int]) -> bool:
    """Whether a token of a GGUF file only fills a row of the model that has no token."""
    return text == f"[PAD{index}]" or (index < len(types) and types[index] == _UNUSED)


def _load(tokenizer_json: str, what: str) -> Any:
    tokenizer = library.load(tokenizer_json, what)
    try:
        tokenizer.encode(_PROBE)
    except BaseException as error:
        # A panic of the library, as for a pattern that takes for ever, derives from it alone.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} is no tokenizer that encodes text: {error}") from None
    return tokenizer
