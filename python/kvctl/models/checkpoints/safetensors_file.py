"""Read a safetensors file without trusting it: its header is checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.untrusted import check_file, parse_json_object

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights are read from."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_NUMPY: dict[str, npt.DTypeLike] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_INTEGERS: dict[str, npt.DTypeLike] = {"I64": np.int64, "I32": np.int32, "BOOL": np.uint8}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class _TensorInfo:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of a safetensors file.

    Parameters
    ----------
    path : Path
        The file; it is mapped, not read.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ValueError
        If it is no regular file, a git-lfs pointer, damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = check_file(path)
        if size < 8:
            raise self._damaged(f"it has {size} bytes")
        self._data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        header_bytes = int.from_bytes(self._data[:8].tobytes(), "little")
        if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise self._damaged(f"a header of {header_bytes} bytes in a file of {size}")
        self._start = 8 + header_bytes
        try:
            text = self._data[8 : self._start].tobytes().decode("utf-8")
            header = parse_json_object(text, "its header")
        except ValueError as error:
            raise self._damaged(str(error)) from None
        self._metadata = header.pop("__metadata__", None)
        self._tensors = {name: self._info(name, entry) for name, entry in header.items()}
        self._check_layout(size - self._start)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of its header by name.

        Raises
        ------
        ValueError
            If they are none.
        """
        texts = {} if self._metadata is None else self._metadata
        if not isinstance(texts, dict) or not all(isinstance(one, str) for one in texts.values()):
            raise self._damaged("its __metadata__ must hold texts by name")
        return texts

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the format calls it; `name` must be one of `names`."""
        return self._tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; `name` must be one of `names`."""
        return self._tensors[name].shape

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor of one of `FLOAT_DTYPES` as float32; `name` must be one of `names`."""
        info = self._tensors[name]
        return self._read(info, info.begin, info.end).reshape(info.shape)

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """Return a tensor of integers or truth values; `name` must be one of `names`.

        Raises
        ------
        ValueError
            If it is of another dtype.
        """
        info = self._tensors[name]
        if info.dtype not in _INTEGERS:
            raise ValueError(
                f"{self.path}: tensor '{name}' is {info.dtype}, and must be one of "
                f"{', '.join(_INTEGERS)}"
            )
        raw = self._data[self._start + info.begin : self._start + info.end]
        return raw.view(_INTEGERS[info.dtype]).astype(np.int64).reshape(info.shape)

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Return the rows [begin, end) of a tensor as float32; only these are read."""
        info = self._tensors[name]
        size = (info.end - info.begin) // max(1, info.shape[0])
        values = self._read(info, info.begin + begin * size, info.begin + end * size)
        return values.reshape(end - begin, *info.shape[1:])

    def _read(self, info: _TensorInfo, begin: int, end: int) -> npt.NDArray[np.float32]:
        raw = self._data[self._start + begin : self._start + end]
        if info.dtype == "BF16":
            wide = np.left_shift(raw.view("<u2"), 16, dtype=np.uint32)
            values: npt.NDArray[np.float32] = wide.view(np.float32)
        else:
            with np.errstate(over="ignore"):  # an infinity is refused where weights are written
                values = raw.view(_NUMPY[info.dtype]).astype(np.float32)
        return values

    def _damaged(self, problem: str) -> ValueError:
        return ValueError(f"{self.path} is damaged or truncated: {problem}")

    def _info(self, name: str, entry: Any) -> _TensorInfo:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"its header does not describe tensor {name!r}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str):
            raise self._damaged(f"tensor {name!r} has the dtype {dtype!r}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise self._damaged(f"tensor {name!r} has the shape {shape!r} at bytes {offsets!r}")
        begin, end = offsets
        bits = math.prod(shape) * _BITS.get(dtype, 0)
        if end < begin or (dtype in _BITS and (end - begin) * 8 != bits):
            raise self._damaged(
                f"tensor {name!r}, {dtype} {tuple(shape)}, cannot lie at bytes {begin} to {end}"
            )
        return _TensorInfo(dtype, tuple(shape), begin, end)

    def _check_layout(self, size: int) -> None:
        """Check that the tensors lie one behind the other and fill the file, as the format says."""
        order = sorted(self._tensors.items(), key=lambda item: (item[1].begin, item[1].end))
        start = _TensorInfo("", (), 0, 0)
        for (before, left), (name, right) in pairwise([("the header", start), *order]):
            if right.begin < left.end:
                raise self._damaged(f"tensors {before!r} and {name!r} overlap")
            if right.begin > left.end:
                raise self._damaged(f"bytes {left.end} to {right.begin} belong to no tensor")
        end = order[-1][1].end if order else 0
        if end != size:
            raise self._damaged(f"its tensors end at byte {end} of {size}")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
