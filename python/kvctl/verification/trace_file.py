"""The file of a trace: a NumPy archive, of which nothing is believed.

What an array's header says is compared with the size of its member before it is allocated, and the
arrays' types and shapes with each other before anything is made of them.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi.replace_file import replacing
from .._ffi.untrusted import check_file, reading

# Of each array the kind of its type, and how many dimensions it has.
_ARRAYS = {"nodes": ("i", 2), "ptrs": ("i", 2), "drawn_names": ("U", 1), "target": ("f", 2)}
_ARRAYS["draft"] = _ARRAYS["target"]

Arrays = dict[str, npt.NDArray[Any]]


def write_trace(path: str | Path, arrays: Arrays) -> None:
    """Write the arrays of a trace. An existing file is replaced after all has been written."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_trace(path: str | Path, max_bytes: int) -> Arrays:
    """Read the arrays of a trace.

    Raises
    ------
    ValueError
        If the file is no trace, or a damaged one, or its arrays take more than `max_bytes`; if it
        is not a regular file.
    OSError
        If it cannot be read.
    """
    check_file(Path(path))
    with Path(path).open("rb") as file, reading(f"{path}"):
        try:
            with zipfile.ZipFile(file) as archive:
                missing = {f"{name}.npy" for name in _ARRAYS} - set(archive.namelist())
                if missing:
                    raise ValueError(
                        f"{path} is not a trace: it lacks {', '.join(sorted(missing))}"
                    )
                size = sum(archive.getinfo(f"{name}.npy").file_size for name in _ARRAYS)
                if size > max_bytes:
                    raise ValueError(
                        f"{path} takes {size} bytes once it is unpacked, more than max_bytes, "
                        f"which is {max_bytes}; raise that for a file you trust"
                    )
                arrays = {name: _array(archive, name, path) for name in _ARRAYS}
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not a trace, or damaged: {error}") from error
    ptrs, nodes, target = arrays["ptrs"], arrays["nodes"], arrays["target"]
    sound = (
        ptrs.shape[0] == 2
        and ptrs.shape[1] >= 1
        and (ptrs[:, 0] == 0).all()
        and (np.diff(ptrs) >= 1).all()
        and nodes.shape == (4, ptrs[0, -1])
        and (nodes[3] >= 0).all()
        and (nodes[3] < len(arrays["drawn_names"])).all()
        and target.shape == arrays["draft"].shape
        and len(target) == ptrs[1, -1]
    )
    if not sound:
        raise ValueError(f"{path} is damaged: its arrays do not fit each other")
    return arrays


def _array(archive: zipfile.ZipFile, name: str, path: str | Path) -> npt.NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {name} is no array: {error}") from None
        if version != (1, 0):
            raise ValueError(f"{path} is damaged: {name} is of an unknown format")
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        if (dtype.kind, len(shape)) != _ARRAYS[name] or size + file.tell() != info.file_size:
            raise ValueError(f"{path} is damaged: {name} is not what a trace holds")
    with archive.open(info) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
