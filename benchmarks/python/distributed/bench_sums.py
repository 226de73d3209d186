"""What whole sums cost beside partial ones: the steps of a model over workers, compiled both ways.

Prints a table and writes one JSON.

    python bench_sums.py --workers 2 --json out.json
    python bench_sums.py --source smollm2 --workers 2

By default the model is a random Llama of 8 layers of 512 with a wide feed-forward. Both ways are
loaded at the same time and take turns, since what else a machine does changes more than the sums
do; the figure of a step is the least of its times, and the ratio is that of the least times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import kvctl
from kvctl.bench.machine_state import describe_machine
from kvctl.cli.compile import resolve
from kvctl.distributed import ModelRunner
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model

CONFIG = LlamaConfig(
    hidden_size=512,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=4096,
    context_window_size=1024,
)
SUMS = ("partial", "whole")
CONTEXT = 64
ROWS = (1, 8, 128)


def step(runner: Any, rows: int) -> float:
    """Return the milliseconds of a step of so many new tokens; the cache is afterwards as before.

    A single token is decoded, eight are verified, more are a prompt.
    """
    begun = perf_counter()
    if rows == 1:
        runner.decode([0], [1])
    elif rows <= 16:
        runner.verify([0], [kvctl.TokenTree.chain(list(range(rows)))])
    else:
        runner.prefill([0], [list(range(rows))])
    taken = perf_counter() - begun
    if 1 < rows <= 16:
        runner.cache.abort()
    else:
        runner.cache.popn(0, rows)
    return taken * 1e3


def load(folder: Path, arguments: argparse.Namespace, sums: str) -> Any:
    """Compile the model with these sums and load it over the workers, with a sequence."""
    source = RandomCheckpoint(CONFIG) if arguments.source is None else resolve(arguments.source)
    directory = compile_model(
        source,
        folder / sums,
        dtype=arguments.dtype,
        tensor_parallel=arguments.workers,
        tensor_parallel_sums=sums,
    )
    runner = ModelRunner.load(directory, workers=arguments.workers, threads=arguments.threads)
    runner.cache.add_sequence(0)
    runner.prefill([0], [list(range(CONTEXT))])
    return runner


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a model's files, or smollm2, instead of random weights")
    parser.add_argument("--dtype", default="float32", help="what the weights are packed as")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--seconds", type=float, default=20, help="for each number of rows")
    parser.add_argument("--json", type=Path, help="where the results go")
    arguments = parser.parse_args()
    found: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        runners = {sums: load(Path(name), arguments, sums) for sums in SUMS}
        for rows in ROWS:
            times: dict[str, list[float]] = {sums: [] for sums in SUMS}
            end = perf_counter() + arguments.seconds
            while perf_counter() < end:
                for sums, runner in runners.items():
                    times[sums] += [step(runner, rows) for _ in range(5)]
            found[rows] = times
        for runner in runners.values():
            runner.close()
    print("ms, least (median)")
    results = {}
    for rows, times in found.items():
        least = {sums: min(values) for sums, values in times.items()}
        median = {sums: float(np.median(values)) for sums, values in times.items()}
        ratio = least["whole"] / least["partial"]
        cells = [f"{sums} {least[sums]:.2f} ({median[sums]:.2f})" for sums in SUMS]
        print(f"{rows:4} rows:", ", ".join(cells), f"ratio {ratio:.2f}")
        results[str(rows)] = {"least": least, "median": median, "ratio": ratio}
    if arguments.json:
        settings = {name: str(value) for name, value in vars(arguments).items() if name != "json"}
        written = {"machine": describe_machine(), "settings": settings, "rows": results}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
