"""The directory that a compilation writes: what may be replaced there, and what may not."""

from __future__ import annotations

import re
from pathlib import Path

_FILES = {"lib.so", "mlc-chat-config.json", "tensor-cache.json", "tokenizer.json"}
_SHARD = re.compile(r"params_shard_\d+\.bin")


def check_output(output: Path, *, source: Path | None, force: bool) -> None:
    """Check that a compiled model may be written to a directory, before anything is.

    Parameters
    ----------
    output : Path
        The directory to write.
    source : Path or None
        The file or directory that is compiled; None where nothing is read.
    force : bool
        Whether a compiled model that is there already may be replaced.

    Raises
    ------
    ValueError
        If `output` is or contains `source`: replacing it would delete what is compiled.
    FileExistsError
        If `output` is there and is no compiled model, or one and `force` is not set.
    """
    if source is not None and _holds(output, source):
        raise ValueError(
            f"{output} holds the model that is compiled, {source}: choose another directory"
        )
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink() or not output.is_dir():
        raise FileExistsError(f"{output} is there and is not a model directory: choose another one")
    names = sorted(entry.name for entry in output.iterdir())
    foreign = [name for name in names if not _is_written(output / name)]
    if foreign:
        raise FileExistsError(
            f"{output} is there and is not a model directory that kvctl wrote: it holds "
            f"{foreign[0]!r}; choose another one"
        )
    if names and not force:
        raise FileExistsError(f"{output} holds a compiled model; `force` replaces it")


def _holds(directory: Path, path: Path) -> bool:
    """Whether a path is a directory or lies in it, whatever links lead there."""
    inside = path.absolute().parents
    resolved, real = directory.resolve(), path.resolve()
    return resolved == real or resolved in real.parents or directory.absolute() in inside


def _is_written(path: Path) -> bool:
    """Whether a directory entry is one that a compilation writes."""
    known = path.name in _FILES or _SHARD.fullmatch(path.name) is not None
    return known and path.is_file() and not path.is_symlink()
