"""A directory that appears complete or not at all, however the process that writes it ends."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .library import LIBRARY_BYTES

# In a scratch directory: what is being written, and what it replaces.
_NEW, _OLD = "new", "old"


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a new directory to write; it becomes `output` at the end, unless something was raised.

    It lies in a scratch directory beside `output`, as ``.name-xxxxxxxx``, which is locked while its
    process lives. What processes that were killed have left there is removed first, and a model
    that one of them was replacing is put back.
    """
    created = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        _remove_abandoned(output)
        scratch, lock = _locked_directory(output)
        try:
            (scratch / _NEW).mkdir()
            yield scratch / _NEW
            if output.exists():
                output.rename(scratch / _OLD)
            try:
                (scratch / _NEW).rename(output)
            except BaseException:
                _put_back(scratch, output)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)
    except BaseException:
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise


def check_space(output: Path, total: int, largest: int) -> None:
    """Make sure that files can be written, before any is.

    Parameters
    ----------
    output : Path
        The directory to write.
    total : int
        Bytes of all files.
    largest : int
        Bytes of the largest one.

    Raises
    ------
    OSError
        If a disk has too little room, or the process may not write files as large.
    """
    parent = next(parent for parent in output.parents if parent.exists())
    for place in {parent, Path(tempfile.gettempdir())}:
        wanted = total if place == parent else LIBRARY_BYTES
        free = shutil.disk_usage(place).free
        if free < wanted:
            raise OSError(f"{place} has room for {free >> 20} MiB, and {wanted >> 20} are needed")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit not in (resource.RLIM_INFINITY, -1) and limit < max(largest, LIBRARY_BYTES):
        raise OSError(
            f"this process may write files of {limit} bytes (ulimit -f), and the model has one of "
            f"{max(largest, LIBRARY_BYTES)}"
        )


def _locked_directory(output: Path) -> tuple[Path, int]:
    """Make a scratch directory and lock it, before anybody takes it for an abandoned one."""
    while True:
        scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:  # taken for an abandoned one
            continue
        try:
            locked = _try_lock(lock)
        except OSError:  # a file system without locks: then it is neither locked nor removed
            locked = True
        if locked and scratch.exists():
            return scratch, lock
        os.close(lock)


def _remove_abandoned(output: Path) -> None:
    name = re.compile(rf"\.{re.escape(output.name)}-[a-z0-9_]{{8}}")
    for scratch in list(output.parent.iterdir()):
        if not name.fullmatch(scratch.name) or scratch.is_symlink() or not scratch.is_dir():
            continue
        with suppress(OSError):
            lock = os.open(scratch, os.O_RDONLY)
            try:
                ours = {entry.name for entry in scratch.iterdir()} <= {_NEW, _OLD}
                if ours and _try_lock(lock):
                    _put_back(scratch, output)
                    shutil.rmtree(scratch, ignore_errors=True)
            finally:
                os.close(lock)


def _put_back(scratch: Path, output: Path) -> None:
    if (scratch / _OLD).exists() and not output.exists():
        (scratch / _OLD).rename(output)


def _try_lock(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
