"""The file of one saved sequence: a safetensors file with K, V, and what the cache knew of it.

Eight bytes with the length of the header (little endian), the header as JSON, and the tensors' raw
bytes one after another: ``k`` and ``v``, each ``(num_layers, tokens, num_kv_heads, head_dim)``, and
``positions`` (int32) where a token's position is not its index. Any safetensors library reads them.
``__metadata__`` names the format, the layout of the cache that K and V come from, the sequence's
numbers, and a checksum over all of that and the tensors. Sizes are checked against each other, the
file and the cache before anything of their size is allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = "kvctl.sequence"
VERSION = "1"
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
MAX_HEADER = 1 << 20
ALIGNMENT = 64
NUMBERS = (
    "length",
    "next_position",
    "window_size",
    "sinks",
    "horizon",
    "gone_begin",
    "gone_end",
    "renumber_sinks",
    "counts_held",
)


@dataclass(frozen=True)
class SequenceFile:
    """What a file holds.

    Attributes
    ----------
    layout : dict
        What the cache's K and V mean: layers, heads, head dimension, type, rotation.
    numbers : tuple of int
        In the order of ``NUMBERS``.
    positions : array, (length,) int32, or None
        The tokens' positions where they are not 0, 1, 2, ...
    k, v : array of bytes, (num_layers, tokens, num_kv_heads, head_dim * bytes of an element)
    """

    layout: dict[str, Any]
    numbers: tuple[int, ...]
    positions: npt.NDArray[np.int32] | None
    k: npt.NDArray[np.uint8]
    v: npt.NDArray[np.uint8]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; one that is there already is replaced only when all has been written."""
        target = Path(path)
        header, arrays = self._header()
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(struct.pack("<Q", len(header)))
                file.write(header)
                for array in arrays:
                    file.write(array.data)
            unfinished.replace(target)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise

    def _header(self) -> tuple[bytes, list[npt.NDArray[Any]]]:
        arrays: list[npt.NDArray[Any]] = [
            np.ascontiguousarray(self.k),
            np.ascontiguousarray(self.v),
        ]
        if self.positions is not None:
            arrays.append(np.ascontiguousarray(self.positions))
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "layout": json.dumps(self.layout, sort_keys=True),
            "numbers": json.dumps(dict(zip(NUMBERS, self.numbers, strict=True))),
        }
        metadata["crc32"] = checksum(metadata, arrays)
        tensors = describe(
            self.layout, self.k.shape[1], self.positions is not None, self.numbers[0]
        )
        header = json.dumps({"__metadata__": metadata, **tensors}).encode()
        return header + b" " * (-(len(header) + 8) % ALIGNMENT), arrays


def describe(
    layout: dict[str, Any], tokens: int, with_positions: bool, length: int
) -> dict[str, dict[str, Any]]:
    """Return the header's entries of the tensors, in the order in which they lie in the file."""
    code, width = DTYPES[layout["dtype"]]
    shape = [layout["num_layers"], tokens, layout["num_kv_heads"], layout["head_dim"]]
    tensors: dict[str, dict[str, Any]] = {}
    end = 0
    kinds = [("k", code, shape, width), ("v", code, shape, width)]
    if with_positions:
        kinds.append(("positions", "I32", [length], 4))
    for name, dtype, extents, size in kinds:
        begin, end = end, end + size * math.prod(extents)
        tensors[name] = {"dtype": dtype, "shape": extents, "data_offsets": [begin, end]}
    return tensors


def checksum(metadata: dict[str, str], arrays: list[npt.NDArray[Any]]) -> str:
    """Return the CRC-32 of the metadata and the tensors' bytes."""
    crc = zlib.crc32(json.dumps({**metadata, "crc32": ""}, sort_keys=True).encode())
    for array in arrays:
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def read_sequence_file(
    path: str | os.PathLike[str], layout: dict[str, Any], max_tokens: int
) -> SequenceFile:
    """Read a saved sequence for a cache of this layout and size.

    Raises
    ------
    ValueError
        If the file is no saved sequence, is damaged, comes from a cache of another layout, or holds
        more than ``max_tokens``.
    OSError
        If it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        _require(len(start) == 8, path, "its header is cut off")
        (header_size,) = struct.unpack("<Q", start)
        _require(header_size <= min(size - 8, MAX_HEADER), path, "its header is cut off")
        header = _object(file.read(header_size), path)
        metadata = _metadata(header.pop("__metadata__", None), path)
        _check_layout(_object(metadata["layout"].encode(), path), layout, path)
        numbers = _numbers(_object(metadata["numbers"].encode(), path), path)
        length, held = numbers[0], numbers[0] - (numbers[6] - numbers[5])
        _require(
            held <= max_tokens,
            path,
            f"it holds {held} tokens and the whole cache has room for {max_tokens}",
        )
        tensors = describe(layout, held, "positions" in header, length)
        _require(header == tensors, path, "its tensors are not those of such a sequence")
        data_size = list(tensors.values())[-1]["data_offsets"][1]
        expected = 8 + header_size + data_size
        _require(size == expected, path, f"it has {size} bytes where {expected} were written")
        data = np.fromfile(file, np.uint8)
    _require(len(data) == data_size, path, "it changed while it was read")
    arrays = [data[slice(*entry["data_offsets"])] for entry in tensors.values()]
    _require(checksum(metadata, arrays) == metadata["crc32"], path, "its checksum does not fit")
    shape = (*tensors["k"]["shape"][:3], layout["head_dim"] * DTYPES[layout["dtype"]][1])
    positions = arrays[2].view("<i4").astype(np.int32) if len(arrays) > 2 else None
    return SequenceFile(
        layout, numbers, positions, arrays[0].reshape(shape), arrays[1].reshape(shape)
    )


def _metadata(metadata: Any, path: str | os.PathLike[str]) -> dict[str, str]:
    known = isinstance(metadata, dict) and metadata.get("format") == FORMAT
    _require(known, path, "it is of another format")
    version = metadata.get("version")
    _require(
        version == VERSION, path, f"its version is {version!r} where this kvctl reads {VERSION!r}"
    )
    sound = set(metadata) == {"format", "version", "layout", "numbers", "crc32"} and all(
        isinstance(value, str) for value in metadata.values()
    )
    _require(sound, path, "its metadata is damaged")
    texts: dict[str, str] = metadata
    return texts


def _require(holds: bool, path: str | os.PathLike[str], problem: str) -> None:
    if not holds:
        raise ValueError(f"{os.fspath(path)} cannot be loaded as a sequence: {problem}")


def _object(text: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        value = None
    _require(isinstance(value, dict), path, "its header is damaged")
    assert isinstance(value, dict)
    return value


def _numbers(values: dict[str, Any], path: str | os.PathLike[str]) -> tuple[int, ...]:
    sound = set(values) == set(NUMBERS) and all(
        type(value) is int and 0 <= value < 1 << 31 for value in values.values()
    )
    _require(sound, path, "its numbers are damaged")
    numbers = tuple(values[name] for name in NUMBERS)
    _require(numbers[5] <= numbers[6] <= numbers[0], path, "its numbers are damaged")
    return numbers


def _check_layout(saved: dict[str, Any], own: dict[str, Any], path: str | os.PathLike[str]) -> None:
    differences = [
        f"{key} is {saved.get(key)!r} in the file and {own.get(key)!r} in the cache"
        for key in sorted(set(saved) | set(own))
        if saved.get(key) != own.get(key)
    ]
    _require(not differences, path, "; ".join(differences))
