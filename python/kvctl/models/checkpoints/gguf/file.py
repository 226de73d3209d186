"""Read a GGUF file without trusting it: counts and offsets are checked before use."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...._ffi.untrusted import check_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MAX_DIMS = 4

# Beyond what any model has, and small enough to be allocated.
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_STRING_BYTES = 64 << 20
_MAX_ARRAY = 1 << 24
_MAX_COUNT = 1 << 18  # of metadata pairs, and of tensors
_MAX_ALIGNMENT = 1 << 20
_CHUNK_ELEMENTS = 1 << 22
"""Elements that are dequantised at once."""


@dataclass(frozen=True)
class _TensorInfo:
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int


class GGUFFile:
    """The metadata and the tensors of a GGUF file (version 2 or 3, little-endian).

    Parameters
    ----------
    path : Path
        The file; it is mapped, not read.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ValueError
        If it is no GGUF file, a git-lfs pointer, or a truncated or inconsistent file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        size = check_file(path)
        if size < 24:
            raise ValueError(f"{path} is no GGUF file: it has {size} bytes")
        self._data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        if self._take(4) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
        version, tensors, pairs = self._unpack("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"{path} is GGUF version {version}; kvctl reads {_VERSIONS}")
        self.metadata: dict[str, Any] = {}
        for _ in range(self._count(pairs, 12, "metadata pairs")):
            key = self._string(_MAX_KEY_BYTES)
            (kind,) = self._unpack("I")
            if key in self.metadata:
                raise ValueError(f"{path} is damaged: its metadata has '{key}' twice")
            self.metadata[key] = self._value(kind)
        self._tensors = self._tensor_infos(self._count(tensors, 24, "tensors"))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, outermost axis first.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        return self._info(name).shape

    def kind(self, name: str) -> str:
        """Return the name of a tensor's type; raises as `shape`."""
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(self._info(name).kind).name)

    def check_types(self, names: Iterable[str]) -> None:
        """Make sure that tensors are of types that can be read as float32.

        Raises
        ------
        ValueError
            If one is not, or is not there.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        first_of = {self._info(name).kind: name for name in reversed(list(names))}
        for kind, name in first_of.items():
            known = GGMLQuantizationType(kind)
            try:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
            except NotImplementedError:
                raise ValueError(
                    f"{self._path}: tensor '{name}' is {known.name}, which kvctl cannot read"
                ) from None

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor as float32, outermost axis first.

        Raises
        ------
        ValueError
            If there is none of that name, or it is of a type that cannot be read.
        """
        shape = self._info(name).shape
        if len(shape) == 1:
            return self._read(name, 0, 1).reshape(shape)
        values = np.empty(shape, np.float32)
        # What dequantisation makes on its way is several times as large.
        step = max(1, _CHUNK_ELEMENTS // max(1, int(np.prod(shape[1:]))))
        for begin in range(0, shape[0], step):
            values[begin : begin + step] = self.rows(name, begin, min(begin + step, shape[0]))
        return values

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Return the rows [begin, end) of a tensor as float32; only these are read.

        Raises
        ------
        ValueError
            As `tensor` does.
        """
        shape = self._info(name).shape
        if len(shape) == 1:
            return self.tensor(name)[begin:end]
        inner = int(np.prod(shape[1:-1]))
        return self._read(name, begin * inner, end * inner).reshape(end - begin, *shape[1:])

    def raw_rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of vectors of the last axis, counted over all others: (rows, bytes)."""
        info = self._info(name)
        size = info.nbytes // max(1, int(np.prod(info.shape[:-1])))
        first, last = info.offset + begin * size, info.offset + end * size
        return np.ascontiguousarray(self._data[first:last]).reshape(-1, size)

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Return vectors of the last axis, counted over all others."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        self.check_types([name])
        info = self._info(name)
        rows = self.raw_rows(name, begin, end)
        with np.errstate(all="ignore"):  # scales may be damaged; the caller checks the numbers
            kind = GGMLQuantizationType(info.kind)
            if kind == GGMLQuantizationType.Q8_0:
                return _dequantize_q8_0(rows)
            values = dequantize(rows, kind)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _info(self, name: str) -> _TensorInfo:
        if name not in self._tensors:
            raise ValueError(f"{self._path} has no tensor '{name}': is it a complete model?")
        return self._tensors[name]

    def _tensor_infos(self, count: int) -> dict[str, _TensorInfo]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found = []
        for _ in range(count):
            name = self._string(_MAX_KEY_BYTES)
            (num_dims,) = self._unpack("I")
            if not 1 <= num_dims <= _MAX_DIMS:
                raise ValueError(f"{self._path}: tensor '{name}' has {num_dims} dimensions")
            dims = self._unpack(f"{num_dims}Q")
            kind, offset = self._unpack("IQ")
            found.append((name, dims[::-1], kind, offset))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
            raise ValueError(f"{self._path}: alignment {alignment!r} is out of range")
        if alignment & (alignment - 1):
            raise ValueError(f"{self._path}: alignment {alignment!r} is not a power of two")
        start = -(-self._at // alignment) * alignment
        infos: dict[str, _TensorInfo] = {}
        for name, shape, kind, offset in found:
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise ValueError(
                    f"{self._path}: tensor '{name}' has the unknown type {kind}"
                ) from None
            elements = 1
            for extent in shape:
                elements *= extent
            if elements == 0 or shape[-1] % block:
                raise ValueError(f"{self._path}: tensor '{name}' cannot have the shape {shape}")
            nbytes = elements // block * block_bytes
            if offset % alignment:
                raise ValueError(
                    f"{self._path} is damaged: tensor '{name}' lies at {offset}, not at a "
                    f"multiple of the alignment, {alignment}"
                )
            if start + offset + nbytes > len(self._data):
                raise ValueError(
                    f"{self._path} is truncated: tensor '{name}' ends at byte "
                    f"{start + offset + nbytes}, the file at {len(self._data)}"
                )
            if name in infos:
                raise ValueError(f"{self._path} has two tensors named '{name}'")
            infos[name] = _TensorInfo(shape, kind, start + offset, nbytes)
        order = sorted(infos, key=lambda name: infos[name].offset)
        for before, name in pairwise(order):
            if infos[before].offset + infos[before].nbytes > infos[name].offset:
                raise ValueError(
                    f"{self._path} is damaged: tensors '{before}' and '{name}' overlap"
                )
        return infos

    def _count(self, count: int, least_bytes: int, what: str, limit: int = _MAX_COUNT) -> int:
        """Refuse a count of things that the rest of the file is too short for, or beyond reason."""
        if count * least_bytes > len(self._data) - self._at:
            raise ValueError(f"{self._path} is truncated: it announces {count} {what}")
        if count > limit:
            raise ValueError(f"{self._path} announces {count} {what}; kvctl reads {limit} at most")
        return count

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError(f"{self._path} is truncated: its header ends at byte {self._at}")
        self._at += size
        return self._data[self._at - size : self._at].tobytes()

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self._take(struct.calcsize("<" + layout)))

    def _string(self, limit: int = _MAX_STRING_BYTES) -> str:
        (size,) = self._unpack("Q")
        if size > limit:
            raise ValueError(f"{self._path} is damaged or truncated: a text of {size} bytes")
        return self._take(size).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"{self._path}: metadata of the unknown type {kind}")
        of, size = self._unpack("IQ")
        if of in _SCALARS:
            layout = _SCALARS[of]
            self._count(size, struct.calcsize("<" + layout), "array elements", _MAX_ARRAY)
            return list(self._unpack(f"{size}{layout}"))
        if of != _STRING:
            raise ValueError(f"{self._path}: an array of the unsupported type {of}")
        return [self._string() for _ in range(self._count(size, 8, "strings", _MAX_ARRAY))]


def _dequantize_q8_0(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return what ``gguf`` does, bit for bit, without a call for every sixteen rows."""
    blocks = rows.reshape(-1, 2 + 32)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= scales
    return values.reshape(len(rows), -1)
