"""What a linear layer costs by type of weights and number of rows, beside one row of the same type.

    python benchmarks/python/bench_linear.py [--types int8 int4] [--rows 1 8 16] [--json out.json]
    python benchmarks/python/bench_linear.py --model --types float32 --rows 1 8 16

The weights of one turn are several layers, more than a processor's own caches hold, so that every
call reads them from further away, as in decoding. Numbers of rows take turns, and the least time of
each counts: the machine's other work makes times longer, never shorter. KVCTL_ISA=avx2 measures the
kernels of a narrower machine.

The least time of one layer may find it in a shared cache. --model takes the least time of a pass
over all layers of SmolLM2-135M, one behind another as a forward reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tvm_ffi

import kvctl

TYPES = ("float32", "bfloat16", "int8", "int4", "int4_offset", "int8_parts")
# Outputs and inputs of a layer of SmolLM2-135M, which has 30, and of its output layer.
LAYER = ((960, 576), (576, 576), (3072, 576), (576, 1536))
MODEL = (*LAYER * 30, (49152, 576))
BLOCK_BYTES = {"int8": 34, "int4": 18, "int4_offset": 22, "int8_parts": 40}


def function(name: str) -> Any:
    return tvm_ffi.get_global_func(f"kvctl.model.{name}")


class Layers:
    """As many packed (n, k) weights of a type as take the bytes asked for."""

    def __init__(self, kind: str, n: int, k: int, total: int) -> None:
        rng = np.random.default_rng(1)
        weight = tvm_ffi.from_dlpack(rng.standard_normal((n, k), dtype=np.float32))
        self.packed: list[Any] = []
        self.n, self.k, self.nbytes = n, k, 0
        while self.nbytes < total:
            if kind in BLOCK_BYTES:
                blocks = rng.integers(0, 128, (n, k // 32, BLOCK_BYTES[kind]), dtype=np.uint8)
                blocks[..., 1] = blocks[..., 3] = 32  # float16 of about a hundredth
                packed = function("pack_quantized")(tvm_ffi.from_dlpack(blocks))
            else:
                packed = function("pack_linear" + ("_bf16" if kind == "bfloat16" else ""))(weight)
            self.packed.append(packed)
            self.nbytes += packed.shape[0]
        self.linear = function("linear")

    def seconds(self, x: Any, out: Any) -> float:
        """Return the least time of a layer: a call is short enough to find the machine free."""
        least = float("inf")
        for packed in self.packed:
            begin = perf_counter()
            self.linear(x, packed, out)
            least = min(least, perf_counter() - begin)
        return least


def measure(
    kind: str, rows: list[int], n: int, k: int, total: int, repeat: int
) -> dict[int, float]:
    layers = Layers(kind, n, k, total)
    rng = np.random.default_rng(2)
    arrays = {
        m: (
            tvm_ffi.from_dlpack(rng.standard_normal((m, k), dtype=np.float32)),
            tvm_ffi.from_dlpack(np.empty((m, n), np.float32)),
        )
        for m in rows
    }
    least = dict.fromkeys(rows, float("inf"))
    for turn in range(repeat + 1):
        for m, (x, out) in arrays.items():
            taken = layers.seconds(x, out)
            if turn:  # the first warms up
                least[m] = min(least[m], taken)
    return least


def measure_model(kind: str, rows: list[int], repeat: int) -> dict[int, float]:
    """Return the least time of a pass over all layers, for each number of rows."""
    linear = function("linear")
    packed = [(n, k, Layers(kind, n, k, 1).packed[0]) for n, k in MODEL]
    rng = np.random.default_rng(2)
    least = dict.fromkeys(rows, float("inf"))
    for m in rows:
        arrays = {
            (n, k): (
                tvm_ffi.from_dlpack(rng.standard_normal((m, k), dtype=np.float32)),
                tvm_ffi.from_dlpack(np.empty((m, n), np.float32)),
            )
            for n, k in dict.fromkeys(MODEL)
        }
        for _ in range(repeat):
            begin = perf_counter()
            for n, k, weight in packed:
                x, out = arrays[n, k]
                linear(x, weight, out)
            least[m] = min(least[m], perf_counter() - begin)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 256])
    parser.add_argument("--shape", type=int, nargs=2, default=[2048, 2048], metavar=("N", "K"))
    parser.add_argument("--model", action="store_true", help="all layers of SmolLM2-135M")
    parser.add_argument("--megabytes", type=int, default=24, help="of weights in one turn")
    parser.add_argument("--repeat", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n, k = options.shape
    if options.model and options.json:
        parser.error("--model prints, and has no --json")
    what = "SmolLM2-135M's layers" if options.model else f"({n}, {k}) weights"
    weights = sum(n * k for n, k in MODEL) if options.model else n * k
    print(f"{what}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, least times")
    found: dict[str, dict[int, float]] = {}
    for kind in options.types:
        if options.model:
            times = measure_model(kind, options.rows, options.repeat)
        else:
            times = measure(kind, options.rows, n, k, options.megabytes << 20, options.repeat)
        found[kind] = times
        one = times[options.rows[0]]
        for m, taken in times.items():
            print(
                f"{kind:9}{m:5} rows {1e6 * taken:10.1f} us {taken / one:7.2f}x of "
                f"{options.rows[0]} {2e-9 * weights * m / taken:8.1f} GFLOP/s",
                flush=True,
            )
    if options.json:
        result = {
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cpus": len(os.sched_getaffinity(0)),
                "isa": str(tvm_ffi.get_global_func("kvctl.build.get_isa")()),
                "load": os.getloadavg()[0],
            },
            "kvctl": kvctl.__version__,
            "shape": [n, k],
            "seconds": found,
        }
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
