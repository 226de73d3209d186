"""A complete GGUF model: one file, or all parts of a split one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .file import GGUFFile

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_PARTS = 1 << 12
# What a part says of itself alone.
_OWN_KEYS = ("split.", "general.alignment")


class GGUFParts:
    """The metadata and the tensors of a GGUF model, wherever they lie.

    Parameters
    ----------
    path : Path
        The file, or any part of one that was split (``name-00001-of-00003.gguf``): the others are
        read with it.

    Raises
    ------
    FileNotFoundError
        If a part is missing; the message names it.
    ValueError
        If a file is damaged, or the parts do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = _open_parts(path)
        self.metadata: dict[str, Any] = dict(self._files[0].metadata)
        self._file_of: dict[str, GGUFFile] = {}
        for file in self._files:
            self._add(file)
        wanted = self.metadata.get("split.tensors.count", len(self._file_of))
        if len(self._files) > 1 and wanted != len(self._file_of):
            raise ValueError(
                f"{path}: its parts hold {len(self._file_of)} tensors together, its "
                f"split.tensors.count says {wanted!r}"
            )

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `GGUFFile`."""
        return self._file(name).shape(name)

    def kind(self, name: str) -> str:
        """See `GGUFFile`."""
        return self._file(name).kind(name)

    def raw_rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """See `GGUFFile`."""
        return self._file(name).raw_rows(name, begin, end)

    def check_types(self, names: Iterable[str]) -> None:
        """See `GGUFFile`."""
        for file in self._files:
            file.check_types([name for name in names if self._file(name) is file])

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """See `GGUFFile`."""
        return self._file(name).tensor(name)

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        """See `GGUFFile`."""
        return self._file(name).rows(name, begin, end)

    def _add(self, file: GGUFFile) -> None:
        others = file.metadata if file is not self._files[0] else {}
        for key, value in others.items():
            if not key.startswith(_OWN_KEYS) and self.metadata.setdefault(key, value) != value:
                raise ValueError(
                    f"{file.path} does not belong to {self._files[0].path.name}: the two disagree "
                    f"on {key}"
                )
        for name in file.tensor_names:
            if name in self._file_of:
                raise ValueError(
                    f"{file.path} and {self._file_of[name].path.name} both hold '{name}'"
                )
            self._file_of[name] = file

    def _file(self, name: str) -> GGUFFile:
        # The first file says what is missing.
        return self._file_of.get(name, self._files[0])


def _open_parts(path: Path) -> list[GGUFFile]:
    file, named = GGUFFile(path), _PART.fullmatch(path.name)
    count = file.metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= _MAX_PARTS:
        raise ValueError(f"{path}: split.count must be from 0 to {_MAX_PARTS}, not {count!r:.60}")
    if count <= 1:
        if named is not None and int(named["count"]) > 1:
            raise ValueError(
                f"{path} is called part {int(named['number'])} of {int(named['count'])}, and its "
                "metadata has no split.count: join the parts, or rename a file that is whole"
            )
        return [file]
    if named is None or int(named["count"]) != count:
        raise ValueError(
            f"{path} is one of {count} parts, and its name does not say which: it must be like "
            f"model-00001-of-{count:05}.gguf"
        )
    paths = [
        path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise FileNotFoundError(f"{path} is one of {count} parts; missing: {', '.join(missing)}")
    files = []
    for number, part in enumerate(paths):
        files.append(file if part == path else GGUFFile(part))
        found = [files[-1].metadata.get(f"split.{key}") for key in ("no", "count")]
        if found != [number, count]:
            raise ValueError(
                f"{part} says that it is part {found[0]!r:.60} of {found[1]!r:.60} (counted from "
                f"0), where part {number} of {count} belongs"
            )
    return files
