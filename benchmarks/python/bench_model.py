"""How long a compiled model's forward takes: one row, k rows of a verify, and a prompt.

Verifying pays when it costs little more than decoding, and decoding cannot be faster than reading
the weights from memory. So two limits are measured with it: the bytes per second that the machine's
threads read, and the arithmetic of a product of many rows.

    python benchmarks/python/bench_model.py MODEL_DIR [--json result.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tvm_ffi

import kvctl
from kvctl.bench.machine_state import memory_bandwidth

CONTEXT = 128
PROMPT = 256


def seconds(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def arithmetic() -> float:
    """Multiplications and additions per second of kvctl's linear layer at 128 rows."""
    rows, size = 128, 1024
    pack, linear = (tvm_ffi.get_global_func(f"kvctl.model.{f}") for f in ("pack_linear", "linear"))
    weight = pack(tvm_ffi.from_dlpack(np.ones((size, size), np.float32)))
    x, out = (tvm_ffi.from_dlpack(np.ones((rows, size), np.float32)) for _ in range(2))
    return 2 * rows * size * size / min(seconds(lambda: linear(x, weight, out)) for _ in range(20))


def measure(runner: kvctl.ModelRunner, rows: list[int], repeat: int) -> dict[str, list[float]]:
    """Return times by what was forwarded, interleaved, so that a disturbance affects all alike."""
    tokens = (np.arange(PROMPT, dtype=np.int64) * 7919 % runner.vocab_size).tolist()
    runner.cache.add_sequence(0)
    runner.prefill([0], [tokens[:CONTEXT]])

    def prefill() -> None:
        runner.prefill([1], [tokens])

    def forward(count: int) -> float:
        if count == 1:
            taken = seconds(lambda: runner.decode([0], tokens[:1]))
            runner.cache.popn(0, 1)
        else:
            tree = kvctl.TokenTree.chain(tokens[:count])
            taken = seconds(lambda: runner.verify([0], [tree]))
            runner.cache.abort([0])
        return taken

    times: dict[str, list[float]] = {}
    for turn in range(repeat + 1):
        found = {str(count): forward(count) for count in rows}
        runner.cache.add_sequence(1)
        found["prefill"] = seconds(prefill)
        runner.cache.remove_sequence(1)
        if turn > 0:  # the first warms up
            for name, taken in found.items():
                times.setdefault(name, []).append(taken)
    return times


def weight_bytes(metadata: dict[str, Any]) -> int:
    """Count the bytes of the weights that one forward reads, as they are packed."""
    packed = metadata.get("kvctl", {}).get("packed", {})
    total = 0
    for param in metadata["params"]:
        if "embed_tokens" not in param["name"]:
            narrow = packed.get(param["name"], "").endswith("bf16")
            size = 1 if param["dtype"] == "uint8" else 2 if narrow else 4
            total += size * int(np.prod(param["shape"]))
    return total


def describe_machine(threads: int) -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": threads,
        "linear": tvm_ffi.get_global_func("kvctl.model.backend")(),
        "kvctl": kvctl.__version__,
        "tvm": metadata.version("apache-tvm"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="kvctl's model directory")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    options = parser.parse_args()
    if 1 not in options.rows:
        parser.error("--rows needs 1: the others are compared with it")

    threads = len(os.sched_getaffinity(0))
    machine = describe_machine(threads)
    bandwidth, flops = memory_bandwidth(threads), arithmetic()
    runner = kvctl.ModelRunner.load(options.model)
    weights = weight_bytes(runner.metadata)
    times = measure(runner, options.rows, options.repeat)

    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    print(
        f"memory {bandwidth / 1e9:.1f} GB/s, so {1e3 * weights / bandwidth:.1f} ms to read "
        f"{weights / 1e6:.0f} MB of weights; arithmetic {flops / 1e9:.0f} GFLOP/s"
    )
    print(
        f"\nforward behind {CONTEXT} tokens\n rows  median ms   best  worst  of one row  of memory"
    )
    one = median(times["1"])
    for rows in options.rows:
        taken = times[str(rows)]
        print(
            f"{rows:5} {1e3 * median(taken):10.2f} {1e3 * min(taken):6.2f} {1e3 * max(taken):6.2f}"
            f" {median(taken) / one:10.2f}x {weights / median(taken) / bandwidth:9.0%}"
        )
    prefill = median(times["prefill"])
    print(f"\nprompt of {PROMPT} tokens: {1e3 * prefill:.0f} ms, {PROMPT / prefill:.0f} tokens/s")
    if options.json:
        result = {
            "machine": machine,
            "bytes_per_second": bandwidth,
            "flop_per_second": flops,
            "weight_bytes": weights,
            "context": CONTEXT,
            "prompt": PROMPT,
            "seconds": times,
        }
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
