"""Make random weights of the right shapes for a compiled model directory without weights.

    python scripts/seed_weights.py DIR

They are for measuring speed, which does not depend on the values. The shards that
``tensor-cache.json`` lists are written beside it, with small numbers from a fixed seed. Files that
exist are kept.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np


def values(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    """Return elements of a type: normal numbers scaled like weights of a small layer."""
    if dtype not in ("float16", "float32", "bfloat16"):
        return np.zeros(count, dtype)
    normal = rng.standard_normal(count, dtype=np.float32) * np.float32(0.03)
    if dtype == "bfloat16":
        return (normal.view(np.uint32) >> 16).astype(np.uint16)
    return normal.astype(dtype)


def main(directory: Path) -> None:
    """Write the shards that are missing."""
    rng = np.random.default_rng(0)
    index = json.loads((directory / "tensor-cache.json").read_text())
    for shard in index["records"]:
        path = directory / shard["dataPath"]
        if path.exists():
            continue
        data = np.zeros(shard["nbytes"], np.uint8)
        for record in shard["records"]:
            part = values(rng, record["dtype"], math.prod(record["shape"])).view(np.uint8)
            data[record["byteOffset"] : record["byteOffset"] + len(part)] = part
        path.write_bytes(data.tobytes())
        print(f"{path.name}: {len(data)} random bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
