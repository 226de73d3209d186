"""K and V of all heads, which lie with several workers: gathered, and shared out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tvm_ffi import get_global_func

from .._ffi import functions as ffi
from .._ffi.convert import to_tensor


@dataclass(frozen=True)
class Heads:
    """Which heads of keys and values each worker has.

    Attributes
    ----------
    total : int
        Heads of the whole model.
    local : int
        Heads in a worker's cache. Those beyond its range are zeros.
    ranges : list of (begin, end)
        For each worker the range of the whole model's heads that it has.
    """

    total: int
    local: int
    ranges: list[tuple[int, int]]

    @property
    def first_has_all(self) -> bool:
        """Whether nothing has to be gathered."""
        return self.ranges[0] == (0, self.total)

    def join(self, parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (layers, tokens, total, ...) of parts (workers, layers, tokens, local, ...)."""
        whole = np.empty((*parts.shape[1:3], self.total, *parts.shape[4:]), parts.dtype)
        for part, (begin, end) in zip(parts, self.ranges, strict=True):
            whole[:, :, begin:end] = part[:, :, : end - begin]
        return whole

    def split(self, whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the parts of (layers, tokens, total, ...); see `join`."""
        shape = (len(self.ranges), *whole.shape[:2], self.local, *whole.shape[3:])
        parts = np.zeros(shape, whole.dtype)
        for part, (begin, end) in zip(parts, self.ranges, strict=True):
            part[:, :, : end - begin] = whole[:, :, begin:end]
        return parts


def heads_of(directory: Path, local: int, workers: int) -> Heads | None:
    """Return the heads of a model's workers, each with `local` ones in its cache.

    None where the configuration does not tell: it lacks the number of the whole model's, or that
    divides in another way than ``kvctl compile`` and MLC-LLM divide it.
    """
    config = json.loads((directory / "mlc-chat-config.json").read_text())
    if int(config.get("tensor_parallel_shards") or 1) == 1:  # each runs the whole model
        return Heads(local, local, [(0, local)] * workers)
    model = config.get("model_config")
    total = model.get("num_key_value_heads") if isinstance(model, dict) else None
    if not isinstance(total, int) or total < 1:
        return None
    sharers = max(1, workers // total)  # workers that have the same head
    share = -(-total // workers) if sharers == 1 else 1
    firsts = [worker // sharers * share for worker in range(workers)]
    ranges = [(min(first, total), min(first + share, total)) for first in firsts]
    return Heads(total, local, ranges) if local == share else None


# What the workers do, each with its own runner.


def gather_kv(runner: Any, seq_id: int, begin: int, end: int) -> list[Any] | None:
    """Return K and V of tokens of every worker, each (workers, ...), on worker 0."""
    return _gathered(ffi.cache.get_kv(_cache(runner), seq_id, begin, end))


def gather_sequence(runner: Any, seq_id: int) -> tuple[Any, list[Any] | None]:
    """Return a worker's saved sequence; and K and V of every worker, each (workers, ...)."""
    saved = ffi.cache.save_sequence(_cache(runner), seq_id)
    return saved, _gathered([saved.k, saved.v])


def scatter_sequence(
    runner: Any,
    seq_id: int,
    numbers: Sequence[int],
    positions: Sequence[int] | None,
    shape: Sequence[int],
    parts: Sequence[Any] | None,
) -> None:
    """Add a sequence whose K and V, each (workers, *shape) bytes, worker 0 has."""
    own = [to_tensor(np.empty(tuple(shape), np.uint8)) for _ in range(2)]
    scatter = get_global_func("runtime.disco.scatter_from_worker0")
    for part, one in zip(parts or (None, None), own, strict=True):
        scatter(part, False, one)
    tokens = None if positions is None else to_tensor(np.array(list(positions), np.int32))
    fields: dict[str, Any] = dict(zip(SAVED_FIELDS, numbers, strict=True))
    saved = ffi.SavedSequenceRecord(**fields, positions=tokens, k=own[0], v=own[1])
    ffi.cache.load_sequence(_cache(runner), seq_id, saved)


#: The integers of a saved sequence, in the order in which they travel.
SAVED_FIELDS = (
    "length",
    "next_position",
    "window_size",
    "sinks",
    "horizon",
    "evicted_begin",
    "evicted_end",
    "renumber_sinks",
    "reports_held_length",
)


def _cache(runner: Any) -> Any:
    return ffi.runner.get_cache(runner)


def _gathered(parts: Sequence[Any]) -> list[Any] | None:
    is_first = int(get_global_func("runtime.disco.worker_rank")()) == 0
    workers = int(get_global_func("runtime.disco.world_size")())
    gather = get_global_func("runtime.disco.gather_to_worker0")
    wholes = []
    for part in parts:
        dtype = np.dtype(getattr(ml_dtypes, str(part.dtype), str(part.dtype)))
        shape = tuple(map(int, part.shape))
        whole = to_tensor(np.empty((workers, *shape), dtype)) if is_first else None
        gather(part, False, whole)
        wholes.append(whole)
    return wholes if is_first else None
