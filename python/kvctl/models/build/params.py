"""Write parameters as MLC-LLM does: ``params_shard_*.bin`` and ``tensor-cache.json``."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi import functions as ffi
from ..checkpoints.bfloat16 import to_bfloat16

_SHARD_BYTES = 32 << 20
"""A shard is closed before it would grow past this; a larger parameter gets one of its own."""


_WRITTEN_AT_ONCE = 4
"""Pieces that are in memory and not written yet; the thread that writes seldom waits for one."""


_HASHED_AT_ONCE = 16
"""Shards whose checksums take hardly longer than that of one of them."""


_LONG_BYTES = 256 << 20
"""A shard whose checksum takes so long that those of others come while it is computed."""


def largest_shard(sizes: list[int]) -> int:
    """Return the most bytes that a file has, for parameters of these sizes."""
    return min(sum(sizes), max(_SHARD_BYTES, *sizes))


class ParamWriter:
    """Collects parameters into shards.

    Parameters
    ----------
    directory : Path
        Where the files go; it must exist.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> writer = ParamWriter(Path(tempfile.mkdtemp()))
    >>> writer.add("table", np.zeros((4, 2), np.float32))
    >>> writer.alias("head", "table")  # the same bytes under a second name
    >>> writer.finish({})
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shards: list[dict[str, Any]] = []
        # Of the shard that is being written.
        self._size = 0
        self._records: list[dict[str, Any]] = []
        # Shards that no checksum was begun of, and the thread that takes them.
        self._unhashed: list[dict[str, Any]] = []
        self._hashing: Future[None] | None = None
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._where: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}

    def add(self, name: str, array: npt.NDArray[Any], *, bfloat16: bool = False) -> None:
        """Append a parameter, float32 or float16.

        `bfloat16` saves a float32 parameter in half the bytes; TVM's loader widens it again.
        """
        self.add_chunks(name, array.shape, str(array.dtype), iter([array]), bfloat16=bfloat16)

    def add_chunks(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        chunks: Iterator[npt.NDArray[Any]],
        *,
        bfloat16: bool = False,
    ) -> None:
        """Append a parameter that comes in pieces along its first axis; see `add`."""
        encoding = "f32-to-bf16" if bfloat16 else "raw"
        nbytes = math.prod(shape) * (2 if bfloat16 else np.dtype(dtype).itemsize)
        if self._size and self._size + nbytes > _SHARD_BYTES:
            self._close_shard()
        record = {
            "name": name,
            "shape": list(shape),
            "dtype": dtype,
            "format": encoding,
            "nbytes": nbytes,
            "byteOffset": self._size,
        }
        path = self._directory / self._shard_name()
        # A thread writes pieces while the next ones are read.
        with path.open("ab", buffering=0) as file:
            waiting: deque[Future[None]] = deque()
            try:
                for chunk in chunks:
                    array = np.ascontiguousarray(chunk)
                    saved: Any = (to_bfloat16(array) if bfloat16 else array).reshape(-1)
                    data = memoryview(saved).cast("B")
                    if len(waiting) == _WRITTEN_AT_ONCE:
                        waiting.popleft().result()
                    waiting.append(self._writer.submit(_write, file, data))
                    self._size += data.nbytes
            finally:
                # All of them first: the file is closed when none is written any more.
                wait(waiting)
            for one in waiting:
                one.result()
        self._records.append(record)
        self._where[name] = (self._records, record)

    def alias(self, name: str, existing: str) -> None:
        """Give the bytes of a parameter a second name, without saving them twice."""
        records, record = self._where[existing]
        records.append({**record, "name": name})

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write the last shard, and then the index, without which the directory is no model."""
        self._close_shard()
        if self._hashing is not None:
            self._hashing.result()
        self._hash_shards(all_of_them=True)
        index = {
            "metadata": {"ParamSize": sum(len(s["records"]) for s in self._shards), **metadata},
            "records": self._shards,
        }
        (self._directory / "tensor-cache.json").write_text(json.dumps(index, indent=1))

    def _shard_name(self) -> str:
        return f"params_shard_{len(self._shards)}.bin"

    def _close_shard(self) -> None:
        if not self._size:
            return
        shard = {
            "dataPath": self._shard_name(),
            "format": "raw-shard",
            "nbytes": self._size,
            "records": self._records,
            "md5sum": "",
        }
        self._shards.append(shard)
        self._unhashed.append(shard)
        self._size, self._records = 0, []
        if self._hashing is None or self._hashing.done():
            if self._hashing is not None:
                self._hashing.result()
            self._hashing = self._hasher.submit(self._hash_shards)

    def _hash_shards(self, *, all_of_them: bool = False) -> None:
        """Compute checksums, from pages that the system has still in memory.

        It begins where enough shards wait, and takes what comes meanwhile if that costs no time of
        its own: what is no longer than the rest of the longest that it reads.
        """
        taken: list[dict[str, Any]] = []

        def take(left: int) -> str:
            waiting = sorted(self._unhashed, key=lambda shard: -shard["nbytes"])
            enough = all_of_them or len(waiting) >= _HASHED_AT_ONCE
            if not left and (enough or (waiting and waiting[0]["nbytes"] >= _LONG_BYTES)):
                left = waiting[0]["nbytes"] if waiting else 0
            for shard in waiting:
                if shard["nbytes"] <= left:
                    self._unhashed.remove(shard)
                    taken.append(shard)
                    return str(self._directory / shard["dataPath"])
            return ""

        for shard, md5 in zip(taken, ffi.checkpoint.file_md5(take), strict=True):
            shard["md5sum"] = str(md5)


def _write(file: FileIO, data: memoryview) -> None:
    """Write all of some bytes, however many calls that takes."""
    while data:
        data = data[file.write(data) :]
