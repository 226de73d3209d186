"""Question sets in the formats of the field; nothing in a file is believed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._ffi.untrusted import check_file, parse_json_object, read_text
from .named_sets import find_named_set

MAX_BYTES = 64 << 20
"""Of a question set, unpacked; the sets that are published have less than 4 MB."""

MAX_QUESTIONS = 100_000
MAX_TURNS = 64
MAX_ID = 200
"""Characters of an id or a category."""


@dataclass(frozen=True)
class Question:
    """One question, or a conversation of several turns.

    Attributes
    ----------
    id : int or str
        Unique in its set.
    category : str
        What figures are grouped by.
    turns : tuple of str
        What the user says, turn by turn; at least one.
    """

    id: int | str
    category: str
    turns: tuple[str, ...]


def read_questions(source: str | Path, *, limit: int | None = None) -> list[Question]:
    """Read a question set.

    Parameters
    ----------
    source
        The name of a set that an installed package carries (`NAMED_SETS`), or a path: JSON lines
        of Spec-Bench, SPEED-Bench or DFlash (an object with ``turns``), of HumanEval or IFBench
        (``prompt``), or of strings, all of them packed by gzip or not; a text file, which is one
        prompt; or a directory of text files.
    limit
        Take at most so many, as evenly from all categories as they allow, in the order of the file.

    Returns
    -------
    list of Question

    Raises
    ------
    FileNotFoundError
        If there is no such file or directory, or the package of a named set is not installed.
    ValueError
        If the file is damaged, too large, in none of these formats, or has no question; if two
        questions have one id; if `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit of questions must be at least 1, got {limit}")
    path = find_named_set(str(source)) or Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix == ".txt")
        questions = [_from_text(file) for file in files]
        what = f"the directory {path} has no .txt file"
    elif path.suffix == ".txt":
        questions, what = [_from_text(path)], ""
    else:
        questions, what = list(_from_lines(path)), f"{path} has no question"
    if not questions:
        raise ValueError(what)
    [(id, count)] = Counter(question.id for question in questions).most_common(1)
    if count > 1:
        raise ValueError(f"{path} has {count} questions with the id {id!r}")
    return questions if limit is None else _spread(questions, limit)


def _spread(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return `limit` questions, the first ones of every category in turns, in their order."""
    seen: Counter[str] = Counter()
    ranks = []
    for place, question in enumerate(questions):
        ranks.append((seen[question.category], place))
        seen[question.category] += 1
    places = sorted(place for _, place in sorted(ranks)[:limit])
    return [questions[place] for place in places]


def _from_text(path: Path) -> Question:
    text = read_text(path, max_bytes=MAX_BYTES).strip()
    if not text:
        raise ValueError(f"{path} is empty")
    return Question(path.stem, path.stem.split("_")[0], (text,))


def _from_lines(path: Path) -> Iterator[Question]:
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        if number > MAX_QUESTIONS:
            raise ValueError(f"{path} has more lines than the {MAX_QUESTIONS} that kvctl reads")
        yield _from_line(line, number, path)


def _text_of(path: Path) -> str:
    """Return a text file's content, unpacked if need be."""
    check_file(path)
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return read_text(path, max_bytes=MAX_BYTES)
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} unpacks to more than the {MAX_BYTES} bytes that kvctl reads")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 text ({error})") from None


def _from_line(line: str, number: int, path: Path) -> Question:
    """Read one line; its fields tell its format."""
    what = f"line {number} of {path}"
    if line.lstrip().startswith('"'):
        try:
            prompt = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{what} is no JSON: {error}") from None
        return Question(number, _set_name(path), (_prompt(prompt, "the line", what),))
    fields = parse_json_object(line, what)
    category = _name(fields.get("category", _set_name(path)), "category", what)
    if "turns" in fields:
        turns = fields["turns"]
        if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
            raise ValueError(f"{what}: turns must be a list of 1 to {MAX_TURNS} texts")
        texts = tuple(_prompt(turn, f"turn {i}", what) for i, turn in enumerate(turns, start=1))
        return Question(_id(fields.get("question_id", number), what), category, texts)
    if "prompt" in fields:
        keys = ("task_id", "question_id", "key")
        id = _id(next((fields[name] for name in keys if name in fields), number), what)
        return Question(id, category, (_prompt(fields["prompt"], "prompt", what),))
    names = ", ".join(sorted(map(repr, fields))[:8]) or "nothing"
    raise ValueError(
        f"{what} is in no format that kvctl knows: it has {names}, and neither 'turns' "
        "(Spec-Bench, SPEED-Bench, DFlash) nor 'prompt' (HumanEval)"
    )


def _set_name(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _prompt(value: Any, name: str, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what}: {name} must be a text that is not empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{what}: {name} has half of a surrogate pair, which is no character")
    return value


def _name(value: Any, name: str, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
        raise ValueError(f"{what}: {name} must be a printable text of 1 to {MAX_ID} characters")
    return value


def _id(value: Any, what: str) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return value
    if isinstance(value, str):
        return _name(value, "the id", what)
    raise ValueError(f"{what}: the id must be a text or an integer of 64 bits")
