"""The file of one saved sequence: a safetensors file with K, V, and the state of the sequence.

Its tensors are ``k`` and ``v``, each ``(num_layers, tokens, num_kv_heads, head_dim)``, and
``positions`` (int32) where a token's position is not its index. With int8 pages there are
``k_scale`` and ``v_scale``, each ``(num_layers, tokens, num_kv_heads)``: what the integers of a
token and head are multiplied by. With float8_e4m3fn pages they are bytes (uint8), and what these
are multiplied by, for each layer, KV head, and K or V, is in the layout. Its metadata names the
format, the layout of the cache that K and V come from, the sequence's numbers, and a checksum over
all of that and the tensors. Sizes are checked against each other, the file and the cache before
anything of their size is allocated.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # teaches NumPy the name "bfloat16", which safetensors asks it for
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .._ffi.replace_file import replacing
from .._ffi.untrusted import check_file

FORMAT = "kvctl.sequence"
VERSION = "1"
DTYPES: dict[str, tuple[str, npt.DTypeLike]] = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
    "int8": ("I8", np.int8),
    "float8_e4m3fn": ("U8", np.uint8),
}
_SCALE = np.dtype(np.float32)  # behind the integers of a token and head
# By name in the file, which its version fixes, the field of a `SavedSequenceRecord`.
NUMBERS = {
    "length": "length",
    "next_position": "next_position",
    "window_size": "window_size",
    "sinks": "sinks",
    "horizon": "horizon",
    "gone_begin": "evicted_begin",
    "gone_end": "evicted_end",
    "renumber_sinks": "renumber_sinks",
    "counts_held": "reports_held_length",
}


@dataclass(frozen=True)
class SequenceFile:
    """The contents of a file.

    Attributes
    ----------
    layout : dict
        The layout of the cache's K and V: layers, heads, head dimension, type, rotation.
    numbers : dict of int
        The sequence's lengths and its window, by the names of ``SavedSequenceRecord``.
    positions : array, (length,) int32, or None
        The tokens' positions where they are not 0, 1, 2, ...
    k, v : array of bytes, (num_layers, tokens, num_kv_heads, head_dim * bytes of an element)
        Of an int8 cache there are four more: those of the float32 scale.
    """

    layout: dict[str, Any]
    numbers: dict[str, Any]
    positions: npt.NDArray[np.int32] | None
    k: npt.NDArray[np.uint8]
    v: npt.NDArray[np.uint8]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file. An existing file is replaced after all has been written."""
        tensors = self._scales() | {"k": self._elements(self.k), "v": self._elements(self.v)}
        if self.positions is not None:
            tensors["positions"] = np.ascontiguousarray(self.positions)
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "layout": json.dumps(self.layout, sort_keys=True),
            "numbers": json.dumps({name: self.numbers[field] for name, field in NUMBERS.items()}),
        }
        metadata["crc32"] = checksum(metadata, list(tensors.values()))
        with replacing(path) as unfinished:
            try:
                save_file(tensors, unfinished, metadata)
            except SafetensorError as error:
                raise OSError(f"{path} could not be written: {error}") from error

    def _elements(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        dtype = np.dtype(DTYPES[self.layout["dtype"]][1])
        shape = (*data.shape[:3], self.layout["head_dim"])
        values = data[..., : shape[3] * dtype.itemsize]
        return np.ascontiguousarray(values).reshape(-1).view(dtype).reshape(shape)

    def _scales(self) -> dict[str, npt.NDArray[Any]]:
        """Return what lies behind the integers of an int8 cache."""
        if self.layout["dtype"] != "int8":
            return {}
        parts = {"k_scale": self.k, "v_scale": self.v}
        tails = {name: data[..., self.layout["head_dim"] :] for name, data in parts.items()}
        return {
            name: np.ascontiguousarray(tail).reshape(-1).view(_SCALE).reshape(tail.shape[:3])
            for name, tail in tails.items()
        }


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
        more than ``max_tokens``; if it is not a regular file.
    OSError
        If it cannot be read.
    """
    check_file(Path(path))
    with Path(path).open("rb"):
        pass  # an OSError that says what is wrong
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            return _read(file, path, layout, max_tokens)
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} cannot be loaded as a sequence: {error}") from error


def _read(
    file: Any, path: str | os.PathLike[str], layout: dict[str, Any], max_tokens: int
) -> SequenceFile:
    metadata = _metadata(file.metadata(), path)
    _check_layout(_object(metadata["layout"], path), layout, path)
    numbers = _numbers(_object(metadata["numbers"], path), path)
    length = numbers["length"]
    held = length - (numbers["evicted_end"] - numbers["evicted_begin"])
    _require(
        held <= max_tokens,
        path,
        f"it holds {held} tokens and the whole cache has room for {max_tokens}",
    )
    code, dtype = DTYPES[layout["dtype"]]
    shape = [layout["num_layers"], held, layout["num_kv_heads"], layout["head_dim"]]
    scales = ("k_scale", "v_scale") if dtype == np.int8 else ()
    tensors = dict.fromkeys(scales, ("F32", shape[:3])) | dict.fromkeys("kv", (code, shape))
    if "positions" in file.keys():
        tensors["positions"] = ("I32", [length])
    found = {name: file.get_slice(name) for name in file.keys()}
    described = {name: (part.get_dtype(), part.get_shape()) for name, part in found.items()}
    _require(described == tensors, path, "its tensors are not those of such a sequence")
    arrays = {name: file.get_tensor(name) for name in tensors}
    crc = checksum(metadata, list(arrays.values()))
    _require(crc == metadata["crc32"], path, "its checksum does not fit")
    k, v = (_rows(arrays[name], arrays.get(f"{name}_scale")) for name in "kv")
    return SequenceFile(layout, numbers, arrays.get("positions"), k, v)


def _rows(
    values: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    """Return K or V as the bytes of a cache's rows."""
    width = values.shape[3] * values.dtype.itemsize
    rows = values.reshape(-1).view(np.uint8).reshape(*values.shape[:3], width)
    if scales is None:
        return rows
    tails = scales.reshape(-1).view(np.uint8).reshape(*values.shape[:3], _SCALE.itemsize)
    return np.concatenate([rows, tails], axis=-1)


def _metadata(metadata: Any, path: str | os.PathLike[str]) -> dict[str, str]:
    known = isinstance(metadata, dict) and metadata.get("format") == FORMAT
    _require(known, path, "it is of another format")
    version = metadata.get("version")
    _require(
        version == VERSION, path, f"its version is {version!r} where this kvctl reads {VERSION!r}"
    )
    fields = {"format", "version", "layout", "numbers", "crc32"}
    _require(set(metadata) == fields, path, "its metadata is damaged")
    texts: dict[str, str] = metadata
    return texts


def _require(holds: bool, path: str | os.PathLike[str], problem: str) -> None:
    if not holds:
        raise ValueError(f"{os.fspath(path)} cannot be loaded as a sequence: {problem}")


def _object(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    _require(isinstance(value, dict), path, "its header is damaged")
    assert isinstance(value, dict)
    return value


def _numbers(values: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    sound = set(values) == set(NUMBERS) and all(
        type(value) is int and 0 <= value < 1 << 31 for value in values.values()
    )
    _require(sound, path, "its numbers are damaged")
    in_order = values["gone_begin"] <= values["gone_end"] <= values["length"]
    _require(in_order, path, "its numbers are damaged")
    return {field: values[name] for name, field in NUMBERS.items()}


def _check_layout(saved: dict[str, Any], own: dict[str, Any], path: str | os.PathLike[str]) -> None:
    differences = [
        "kv_scales differ"
        if key == "kv_scales"
        else f"{key} is {saved.get(key)!r} in the file and {own.get(key)!r} in the cache"
        for key in sorted(set(saved) | set(own))
        if saved.get(key) != own.get(key)
    ]
    _require(not differences, path, "; ".join(differences))
