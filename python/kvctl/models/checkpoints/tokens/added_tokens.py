"""Tokens that stand beside a ``tokenizer.json`` and not in it.

Transformers adds what ``tokenizer_config.json`` and its like name to the tokenizer. Without them a
chat template's ``<|im_start|>`` would be split into characters, and its row would count as padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...._ffi.untrusted import read_json_object, read_text, reading
from ....text import library

_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized")
_CONFIG, _LEGACY, _SPECIAL = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


class _Named(NamedTuple):
    """A token that a file names: its options, and its id where the file has one."""

    content: str
    special: bool
    options: dict[str, bool]
    id: int | None
    file: Path


def read_tokenizer_json(directory: Path) -> str | None:
    """Return ``tokenizer.json`` with the tokens that other files of the directory add to it.

    Returns
    -------
    str or None
        The file as it is where nothing is missing; None where there is no such file.

    Raises
    ------
    ValueError
        If a file is damaged, or gives a token another id than ``tokenizer.json`` has or would get.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        return None
    content = read_text(path)
    named = list(_named(directory))
    if not named:
        return content
    import tokenizers

    tokenizer = library.load(content, str(path))
    added = False
    for token in named:
        id = tokenizer.token_to_id(token.content)
        if id is None:
            new = tokenizers.AddedToken(token.content, special=token.special, **token.options)
            tokenizer.add_tokens([new])
            id, added = tokenizer.token_to_id(token.content), True
        if token.id not in (None, id):
            raise ValueError(
                f"{token.file} gives '{token.content:.60}' the id {token.id}, and with "
                f"{path.name} it has {id}: save the tokenizer again"
            )
    return str(tokenizer.to_str()) if added else content


def _named(directory: Path) -> Iterator[_Named]:
    """Yield what the files name, in the order in which transformers adds it."""
    config, file = _read(directory / _CONFIG), directory / _CONFIG
    with reading(str(file)):
        decoder = config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, Mapping):
            raise ValueError(f"{file}: added_tokens_decoder must be an object, not {decoder!r:.60}")
        by_id = {_id(int(key) if key.isdecimal() else key, file): key for key in decoder}
        for id in sorted(by_id):
            yield _one(decoder[by_id[id]], file, id=id, special=False)
    if not decoder:
        yield from _legacy(directory / _LEGACY)
    for source in (_SPECIAL, _CONFIG):
        file = directory / source
        fields = _read(file)
        with reading(str(file)):
            for field in ("additional_special_tokens", "extra_special_tokens"):
                entries = fields.get(field) or []
                values = entries.values() if isinstance(entries, Mapping) else entries
                if not isinstance(entries, Mapping | list):
                    raise ValueError(f"{file}: {field} must be a list, not {entries!r:.60}")
                yield from (_one(entry, file, id=None, special=True) for entry in values)


def _legacy(file: Path) -> Iterator[_Named]:
    """Yield the tokens of ``added_tokens.json``: ids by text."""
    with reading(str(file)):
        ids = {content: _id(id, file) for content, id in _read(file).items()}
        for content in sorted(ids, key=lambda content: ids[content]):
            yield _one(content, file, id=ids[content], special=False)


def _one(entry: Any, file: Path, *, id: int | None, special: bool) -> _Named:
    """Return the token of an entry: its text, or an object with its options."""
    fields = {"content": entry, "special": special} if isinstance(entry, str) else entry
    content = fields.get("content") if isinstance(fields, Mapping) else None
    if not isinstance(content, str) or not content or not _is_unicode(content):
        raise ValueError(f"{file}: an added token must be a text with options, not {entry!r:.60}")
    options = {name: bool(fields[name]) for name in _OPTIONS if name in fields}
    return _Named(content, bool(fields.get("special", special)), options, id, file)


def _is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which JSON can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _id(value: Any, file: Path) -> int:
    if type(value) is not int:
        raise ValueError(f"{file}: ids must be integers, not {value!r:.60}")
    return value


def _read(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.exists() else {}
