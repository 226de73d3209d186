"""Write a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.replace_file import replacing

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "bool": "BOOL",
}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    bfloat16: frozenset[str] = frozenset(),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to a file that others see whole or not at all.

    Parameters
    ----------
    path
        The file; what is there is replaced.
    tensors
        Arrays of float64, float32, float16, int64, int32 or bool by name.
    bfloat16
        Names of uint16 arrays that hold the bits of bfloat16 numbers.
    metadata
        Texts by name, kept in the header.

    Raises
    ------
    ValueError
        If an array is of another type.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name, array in tensors.items():
        kind = "BF16" if name in bfloat16 else _NAMES.get(str(array.dtype))
        if kind is None or (name in bfloat16 and array.dtype != np.uint16):
            raise ValueError(f"tensor '{name}' is {array.dtype}, which is not written")
        entries[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [begin, begin + array.nbytes],
        }
        begin += array.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).data)
