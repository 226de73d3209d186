"""A file that appears complete or not at all, and replaces an older one only then."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file beside `path` to write; it becomes `path` at the end, unless something is raised.

    Raises
    ------
    ValueError
        If something that is no file, a directory or a device, has that name.
    OSError
        If the file cannot be made, or not be renamed.
    """
    target = Path(path).resolve()  # the file behind a link, not the link
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is no file that could be replaced")
    writer = f"{os.getpid()}-{threading.get_ident()}"  # each has a file of its own
    unfinished = target.with_name(f"{target.name}.{writer}.unfinished")
    try:
        unfinished.touch()  # an OSError that says what is wrong
        yield unfinished
        unfinished.replace(target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
