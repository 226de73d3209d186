"""What rounds cost, remembered between processes in a file of the user's cache folder.

The file helps the next process to draft well from its first round. It is a convenience: nothing
that is wrong with it, or with the folder, ever fails a generation.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._ffi import functions as ffi
from .._ffi.replace_file import replacing
from .._ffi.untrusted import parse_json_object, read_text

_FILE = "round_costs.json"
_MAX_BYTES = 1 << 20
_MAX_MODELS = 64
_MAX_POINTS = 128
_MAX_COST = 1e9  # plain steps; JSON holds integers beyond any float

Points = Sequence[tuple[int, float]]


def cache_dir() -> Path:
    """Return the folder for what may be lost: $KVCTL_CACHE_DIR, or the user's cache folder.

    Raises
    ------
    RuntimeError
        If the user has no home.
    """
    if asked := os.environ.get("KVCTL_CACHE_DIR"):
        return Path(asked)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kvctl"
    return Path.home() / ".cache" / "kvctl"


def key_of(identity: str) -> str:
    """Return the name of a model on this machine, with these threads and this version of kvctl."""
    parts = (
        identity,
        platform.node(),
        platform.machine(),
        str(os.cpu_count()),
        str(len(os.sched_getaffinity(0))),
        str(ffi.build.get_isa()),
        str(ffi.build.get_openmp_threads()),
        os.environ.get("KVCTL_LINEAR", ""),
        str(ffi.build.get_version()),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def recall(key: str) -> list[tuple[int, float]]:
    """Return the points that were kept under a key; none if there are none, or for any reason."""
    try:
        return _points(_read(cache_dir() / _FILE).get(key))
    except (OSError, ValueError, RuntimeError):
        return []


def remember(key: str, points: Points) -> bool:
    """Keep points under a key, beside those of other models; return whether that worked.

    The file is replaced as a whole, so that no reader ever sees a part of it. Of two processes that
    write at once, the one that is last wins.
    """
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            entries = _read(folder / _FILE)
        except (OSError, ValueError):
            entries = {}
        entries[key] = {"used": int(time.time()), "points": [list(p) for p in points][:_MAX_POINTS]}
        newest = sorted(entries, key=lambda name: _used(entries[name]), reverse=True)[:_MAX_MODELS]
        with replacing(folder / _FILE) as file:
            file.write_text(json.dumps({name: entries[name] for name in newest}))
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of the file that are well formed."""
    entries = parse_json_object(read_text(path, max_bytes=_MAX_BYTES), str(path))
    return {name: entry for name, entry in entries.items() if _points(entry)}


def _points(entry: Any) -> list[tuple[int, float]]:
    """Return the points of an entry that are pairs of numbers."""
    points = entry.get("points") if isinstance(entry, dict) else None
    if not isinstance(points, list):
        return []
    found = []
    for point in points[:_MAX_POINTS]:
        if isinstance(point, list) and len(point) == 2:
            rows, cost = point
            if type(rows) is int and type(cost) in (int, float) and abs(cost) < _MAX_COST:
                found.append((rows, float(cost)))
    return found


def _used(entry: Any) -> int:
    used = entry.get("used")
    return used if type(used) is int else 0
