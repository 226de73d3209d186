"""Random operations on the cache and the model: fuzz_cache.py --operations N --seed S.

A failure is cut down to the smallest log that still fails, which is printed as Python and can be
run again with --replay.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "python" / "support" / "cache"))

from cache_trial import Setup, Trial
from random_operations import random_operations

EPISODE = 400  # operations on one cache; what fails is looked for in one episode
Log = list[tuple[Any, ...]]


def setups(rng: Random) -> Setup:
    """Return a random small cache."""
    page_size = rng.choice([1, 2, 4, 4, 5, 8, 16])
    layers = rng.choice([(0,), (0,), (0, 0), (0, 0), (3, 0), (0, 7, 2)])
    heads = rng.choice([(1, 1), (2, 1), (4, 2), (3, 3)])
    return Setup(
        page_size=page_size,
        num_pages=max(6, rng.choice([60, 90, 140, 240]) // page_size),
        dtype=rng.choice(["float32", "float32", "float16"]),
        num_layers=len(layers),
        layer_windows=layers if any(layers) else (),
        num_qo_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=rng.choice([8, 16]),
        prefill_chunk_size=rng.choice([16, 24, 32]),
        rope=rng.random() < 0.4,
        rope_inline=rng.random() < 0.25,
        rope_library=rng.random() < 0.3 and not any(layers),
    )


def run(setup: Setup, log: Log) -> Exception | None:
    """Replay a log on a new cache; return what went wrong."""
    try:
        trial = Trial(setup)
        for operation in log:
            trial.apply(operation)
        trial.drain()
    except Exception as error:
        return error
    return None


def shrink(setup: Setup, log: Log, kind: type[Exception]) -> Log:
    """Cut a failing log down: drop ever smaller runs of operations while it fails alike."""
    size = len(log) // 2
    while size:
        at, shorter = 0, False
        while at < len(log):
            candidate = log[:at] + log[at + size :]
            if type(run(setup, candidate)) is kind:
                log, shorter = candidate, True
            else:
                at += size
        size = size if shorter and size == 1 else size // 2
    return log


def fuzz(operations: int, seed: int) -> int:
    """Run episodes until so many operations were done; return the exit status."""
    done, counts, began, told = 0, Counter[str](), time.monotonic(), time.monotonic()
    episode = 0
    while done < operations:
        rng = Random(f"{seed}/{episode}")
        setup = setups(rng)
        log: Log = []
        try:
            trial = Trial(setup)
            windows = bool(setup.layer_windows) or rng.random() < 0.4
            stream = random_operations(trial.model, rng, windows=windows)
            for _ in range(min(EPISODE, operations - done)):
                log.append(next(stream))
                counts[f"{log[-1][0]}: {trial.apply(log[-1])}"] += 1
            trial.drain()
        except Exception as error:
            report(setup, log, error, f"seed {seed}, episode {episode}")
            return 1
        done += len(log)
        episode += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{done:,} operations, {done / (told - began):,.0f} per second", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{done:,} operations in {episode:,} caches, no failure: {done / seconds:,.0f} per second"
    )
    for what, count in sorted(counts.items()):
        print(f"  {what:34} {count:10,}")
    return 0


def report(setup: Setup, log: Log, error: Exception, where: str) -> None:
    """Print the smallest log that fails like this one."""
    print(f"{where}, operation {len(log)}: {type(error).__name__}: {error}")
    if run(setup, log) is None:
        print("It does not fail again from its log: it depends on more than the operations.")
        return
    small = shrink(setup, log, type(error))
    again = run(setup, small)
    print(f"Smallest failing log, {len(small)} operations ({type(again).__name__}: {again}):")
    print(f"{setup}\n[")
    for operation in small:
        print(f"    {operation},")
    print("]")


def replay(path: Path) -> int:
    """Run a printed log: a file with the setup's line and the list."""
    first, rest = path.read_text().split("\n", 1)
    call = ast.parse(first, mode="eval").body
    assert isinstance(call, ast.Call)
    setup = Setup(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})
    error = run(setup, ast.literal_eval(rest))
    print("no failure" if error is None else f"{type(error).__name__}: {error}")
    return int(error is not None)


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    return fuzz(options.operations, options.seed)


if __name__ == "__main__":
    sys.exit(main())
