"""Compare this checkout with an earlier commit, in one run: both take turns, least times count.

    python benchmarks/python/suite/bench_against.py --against REV [--rounds 3] [--only linear]
    make bench AGAINST=REV

The earlier commit is built in a worktree of its own, build/against/COMMIT, which stays for the next
comparison. Drivers in Python are those of this checkout, run by the other's interpreter, so that
both measure the same; those in C++ are each commit's own. `--built DIR` compares with a checkout
that is built already.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def python_of(checkout: Path) -> Path:
    return checkout / ".venv" / "bin" / "python"


def program_of(checkout: Path, name: str) -> Path:
    """Return a benchmark in C++ that was built with a checkout."""
    found = sorted(checkout.glob(f"build/cp3*/benchmarks/cpp/{name}"))
    if not found:
        raise FileNotFoundError(f"{checkout} has no built benchmarks/cpp/{name}")
    return found[0]


def linear_command(checkout: Path, out: Path) -> list[str]:
    types = ["float32", "bfloat16", "int8", "int4"]
    rows = ["1", "8", "16", "64", "256"]
    driver = str(ROOT / "benchmarks" / "python" / "bench_linear.py")
    command = [str(python_of(checkout)), driver, "--types", *types, "--rows", *rows]
    return [*command, "--repeat", "6", "--json", str(out)]


def linear_times(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{kind}, {rows} rows": taken
        for kind, times in result["seconds"].items()
        for rows, taken in times.items()
    }


def step_command(checkout: Path, out: Path) -> list[str]:
    return [str(program_of(checkout, "step_cost")), str(out), "60"]


def step_times(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{row['batch']} x {row['context']}, {row['shape']}": row["kvctl"]["step"]["least_us"]
        * 1e-6
        for row in result["rows"]
    }


def verification_command(checkout: Path, out: Path) -> list[str]:
    return [str(program_of(checkout, "verification")), str(out), "20"]


def verification_times(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{call['rule']}, V = {call['vocab']}, B = {call['batch']}": call["time"]["least_us"] * 1e-6
        for call in result["calls"]
    }


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is run, and the seconds in what it writes."""

    command: Callable[[Path, Path], list[str]]
    times: Callable[[dict[str, Any]], dict[str, float]]


BENCHMARKS = {
    "linear": Benchmark(linear_command, linear_times),
    "step_cost": Benchmark(step_command, step_times),
    "verification": Benchmark(verification_command, verification_times),
}


def build(revision: str) -> Path:
    """Return the worktree of a commit, built."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--verify", f"{revision}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode:
        raise ValueError(f"there is no commit {revision!r} here")
    checkout = ROOT / "build" / "against" / commit.stdout.strip()[:12]
    if not checkout.exists():
        subprocess.run([*git, "worktree", "prune"], check=True)  # one that `make clean` removed
        subprocess.run(
            [*git, "worktree", "add", "--detach", str(checkout), commit.stdout.strip()], check=True
        )
    environment = {"CMAKE_ARGS": "-DKVCTL_CUDA=OFF", **os.environ}  # nothing here runs on a GPU
    make = ["make", "-C", str(checkout), ".venv/built"]
    if subprocess.run(make, env=environment, check=False).returncode:
        raise ValueError(f"{revision} does not build here: see above, and {checkout}")
    return checkout


def measure(benchmark: Benchmark, checkout: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        subprocess.run(
            benchmark.command(checkout, out), check=True, cwd=checkout, stdout=subprocess.DEVNULL
        )
        return benchmark.times(json.loads(out.read_text()))


def compare(name: str, other: Path, rounds: int) -> list[dict[str, Any]]:
    """Return for each figure the least seconds of both, and print them."""
    least: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for turn in range(rounds):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        for side in order:
            for what, taken in measure(BENCHMARKS[name], (other, ROOT)[side]).items():
                least[side][what] = min(taken, least[side].get(what, taken))
    rows = []
    print(f"{name:<44} {'before':>12} {'now':>12} {'ratio':>7}")
    for what in least[0].keys() & least[1].keys():
        before, now = least[0][what], least[1][what]
        rows.append({"what": what, "before_s": before, "now_s": now, "ratio": now / before})
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        before, now = row["before_s"] * 1e6, row["now_s"] * 1e6
        print(f"{row['what']:<44} {before:9.2f} us {now:9.2f} us {row['ratio']:6.2f}x")
    return rows


def describe(rounds: int) -> dict[str, Any]:
    """Return the machine, how busy it is, and how often each measured."""
    from kvctl.bench.machine_state import describe_machine, machine_load, memory_bandwidth

    found = describe_machine()
    return {
        **found,
        "bytes_per_second": memory_bandwidth(int(found["cpus"])),
        "load": machine_load()["load"],
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", metavar="REV", help="the earlier commit")
    parser.add_argument("--built", type=Path, help="a checkout of it that is built already")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if (options.against is None) == (options.built is None):
        parser.error("give --against and an earlier commit, or --built and its checkout")
    try:
        other = options.built or build(options.against)
    except ValueError as error:
        sys.exit(f"bench_against: {error}")
    found = {name: compare(name, other.absolute(), options.rounds) for name in options.only}
    if options.json:
        result = {
            "measured": describe(options.rounds),
            "against": options.against or str(options.built),
            "figures": found,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
