"""Read files of unknown origin, and name the file in every error that its content leads to."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20
"""A configuration or an index that is larger is none; tokenizers may be larger (`read_text`)."""

MAX_TEXT_BYTES = 256 << 20
"""Far above any tokenizer.json, far below what could exhaust memory."""

# A pointer that git-lfs leaves in place of a file is shorter than this.
_MAX_POINTER_BYTES = 1024
_POINTER_STARTS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/",
)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn errors that a damaged file leads to into a ``ValueError`` that names it.

    A ``ValueError`` passes as it is, having been raised on purpose, and so do an ``OSError``, a
    ``MemoryError`` and a ``NotImplementedError``.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, NotImplementedError):
        raise
    except Exception as error:
        raise ValueError(f"{what} is damaged: {type(error).__name__}: {error}") from error


def check_file(path: Path) -> int:
    """Make sure that a path is a regular file, or a link to one, with content of its own.

    A FIFO or a device may never end, and a pointer of git-lfs only names the content.

    Returns
    -------
    int
        Its size in bytes.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is nothing, or a directory.
    ValueError
        If it is something else than a regular file, or a pointer of git-lfs.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if status.st_size < _MAX_POINTER_BYTES:
        with path.open("rb") as file:
            if file.read(_MAX_POINTER_BYTES).startswith(_POINTER_STARTS):
                raise ValueError(
                    f"{path} is a git-lfs pointer, not the file that it stands for: run "
                    f"'git lfs pull' in {path.parent}"
                )
    return status.st_size


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file that is not too large to be what it says.

    Raises
    ------
    FileNotFoundError, ValueError
        As `check_file` does.
    ValueError
        If it has more than `max_bytes` or is not UTF-8.
    """
    size = check_file(path)
    if size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, more than the {max_bytes} that kvctl reads")
    with path.open("rb") as file:
        data = file.read(max_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 text ({error})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_text` does.
    ValueError
        If it is no JSON, nested too deeply, repeats a key, or is something else than an object.
    """
    return parse_json_object(read_text(path, max_bytes=MAX_JSON_BYTES), str(path))


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Parse one JSON object; `what` names the document in messages.

    Raises
    ------
    ValueError
        As `read_json_object` does.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError(f"{what} is no JSON that kvctl reads: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what} must hold a JSON object")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} appears twice in one object")
    return content
