"""The host's part of a step over two workers, and what it consists of.

Prints three tables and writes one JSON.

    python bench_distributed.py --json out.json

A tiny model runs whole on each worker, with one thread, so that no collective is in the first two
tables. The first: what a step takes more than on one worker, which has the same model, so the
slower worker's wait for a core, its cold caches and every wake-up count as the host's. Both take
turns; the overhead is the difference of the two least times, and of the two medians. Steps come at
once behind each other, or behind a millisecond of other work, when the second worker sleeps. The
second table has the same steps by the clock, which the processes share: when each worker began, how
long it was at work, and what is left beyond the slower worker's own time. The third has parts, each
measured by itself, and one step's collectives with a model that is split.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np
import tvm_ffi

import kvctl
from kvctl.bench.machine_state import describe_machine
from kvctl.distributed import ModelRunner
from kvctl.distributed.messages.program import Call, Kept, Own, decode, encode
from kvctl.distributed.messages.wire import EXECUTE
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=256,
    context_window_size=512,
)
#: Seconds of other work before a step, and what a step's name says of them.
PAUSES = {0.0: "", 1e-3: ", behind 1 ms"}
TREE = kvctl.TokenTree.chain([3, 4, 5, 6])


def work(seconds: float) -> None:
    """Keep this thread's core awake for a while, as a drafter or a rule does."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def microseconds(act: Callable[[], Any], times: int, pause: float = 0.0) -> list[float]:
    """Return what each of so many calls takes, each behind so many seconds of other work."""
    found = []
    for _ in range(times):
        work(pause)
        begun = perf_counter()
        act()
        found.append((perf_counter() - begun) * 1e6)
    return found


def least(found: list[float]) -> dict[str, float]:
    """Return the least and the middle of some times."""
    return {"least": round(min(found), 1), "median": round(float(np.median(found)), 1)}


def steps(runner: Any) -> dict[str, Callable[[], Any]]:
    """Return the steps that are measured; each leaves the cache as it was."""

    def decode_one() -> None:
        runner.decode([0], [1])
        runner.cache.popn(0, 1)

    def round_of_a_draft() -> None:
        runner.verify([0], [TREE])
        runner.cache.commit([0], [[0, 1]])
        runner.cache.popn(0, 2)

    return {"decode": decode_one, "verify, commit and popn": round_of_a_draft}


def compare(one: Any, two: Any, rounds: int, times: int) -> dict[str, Any]:
    """Measure every step on one worker and on two, in turns."""
    found: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for pause, behind in PAUSES.items():
            for place, runner in enumerate((one, two)):
                for name, act in steps(runner).items():
                    both = found.setdefault(name + behind, [[], []])
                    both[place] += microseconds(act, times, pause)
    table = {}
    for name, both in found.items():
        alone, several = map(least, both)
        overhead = {key: round(several[key] - alone[key], 1) for key in alone}
        table[name] = {"one worker": alone, "two workers": several, "overhead": overhead}
    return table


def timeline(two: Any, times: int, pause: float) -> dict[str, Any]:
    """Measure when the workers do their parts of a decode."""
    session = two._session
    found: dict[str, list[float]] = {}
    for _ in range(times):
        work(pause)
        begun = perf_counter()
        two.decode([0], [1])
        ended = perf_counter()
        two.cache.popn(0, 1)
        worker_times = session.last_reports.times  # of the clock that all processes have
        (first, first_end), (second, second_end) = worker_times[0], worker_times[1]
        slower = max(first_end - first, second_end - second)
        for name, seconds in {
            "until worker 0 begins (this thread)": first - begun,
            "until worker 1 begins (a process)": second - begun,
            "worker 0 at work": first_end - first,
            "worker 1 at work": second_end - second,
            "from the later end until the call returns": ended - max(first_end, second_end),
            "the whole step": ended - begun,
            "beyond the slower worker's own time": ended - begun - slower,
        }.items():
            found.setdefault(name, []).append(seconds * 1e6)
    return {name: least(values) for name, values in found.items()}


def ping(times: int) -> dict[str, float]:
    """Return what it takes to wake a thread that waits for a socket, and to be woken by it."""
    here, there = socket.socketpair()

    def answer() -> None:
        while data := there.recv(16):
            there.sendall(data)

    Thread(target=answer, daemon=True).start()

    def act() -> None:
        here.sendall(b"ping")
        here.recv(16)

    found = least(microseconds(act, times))
    here.close()
    return found


def parts(two: Any, split: Any, times: int) -> dict[str, Any]:
    """Measure the parts of a step by themselves."""
    session = two._session
    shapes = [tvm_ffi.Shape((0,)), tvm_ffi.Shape((1,))]
    popn = Call("cache.popn", (Own.CACHE, 0, 1))
    step = Call("runner.decode", (Own.RUNNER, *shapes))
    message = encode((9, 9, 0, 1), [popn, step])
    nothing = encode((-1, -1, 0, 0), [])
    session.first.next_call = Call("forget", (Kept(-1),))

    def call(who: int) -> None:
        session.call(EXECUTE, nothing, who=who, doing="")

    return {
        "write a popn and a decode as bytes": least(
            microseconds(lambda: encode((9, 9, 0, 1), [popn, step]), times)
        ),
        "read the bytes on a worker": least(microseconds(lambda: decode(message, 4), times)),
        "wake a thread by a socket, and be woken": ping(times),
        "call of nothing, worker 0 (this thread)": least(microseconds(lambda: call(1), times)),
        "call of nothing, worker 1 (a process)": least(microseconds(lambda: call(2), times)),
        "call of nothing, both": least(microseconds(lambda: call(-1), times)),
        "decode of the split model, 4 allreduces and a gather of logits": least(
            microseconds(steps(split)["decode"], times)
        ),
    }


def load(folder: Path, shards: int, workers: int = 1) -> Any:
    """Compile the tiny model for so many shards, and load it, with a sequence."""
    directory = folder / str(shards)
    if not directory.exists():
        options: dict[str, Any] = {"tensor_parallel": shards, "tensor_parallel_sums": "partial"}
        compile_model(RandomCheckpoint(CONFIG), directory, **options)
    if workers > 1:
        runner: Any = ModelRunner.load(directory, threads=1, workers=workers)
    else:
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(1)
        runner = kvctl.ModelRunner.load(directory)
    runner.cache.add_sequence(0)
    runner.prefill([0], [list(range(1, 30))])
    return runner


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of one worker and of two")
    parser.add_argument("--times", type=int, default=400, help="steps in a turn")
    parser.add_argument("--json", type=Path, help="where the results go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = load(folder, 1)
        with load(folder, 1, workers=2) as two:
            table = compare(one, two, arguments.rounds, arguments.times)
            times = {
                f"decode{behind}": timeline(two, arguments.times, pause)
                for pause, behind in PAUSES.items()
            }
            with load(folder, 2, workers=2) as split:
                pieces = parts(two, split, arguments.times)
    print("microseconds: least (median)\n")
    for step, sides in table.items():
        cells = [f"{side} {t['least']} ({t['median']})" for side, t in sides.items()]
        print(f"{step:38}", ", ".join(cells))
    for title, rows in (*times.items(), ("parts", pieces)):
        print(f"\n{title}")
        for part, found in rows.items():
            print(f"  {part:64} {found['least']:8} ({found['median']})")
    if arguments.json:
        results = {"machine": describe_machine(), "steps": table, "times": times, "parts": pieces}
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
