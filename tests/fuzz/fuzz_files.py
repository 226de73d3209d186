"""Damaged files of every kind that kvctl reads: fuzz_files.py --inputs N --seed S.

Each input is a whole file that was damaged. It is read, or refused with a sentence that names it:
no crash, no hang, no error of a library, nothing half written. A child process reads them, so that
one that crashes or hangs is counted and the rest go on; --only KIND and --first I --inputs 1 run
one again.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import IO

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "python" / "support"
sys.path[:0] = [str(HERE), *(str(SUPPORT / room) for room in ("cache", "checkpoints", "models"))]

SECONDS = 60  # for one input; the slowest takes less than two
# What a refusal may be.
REFUSALS = (ValueError, OSError, NotImplementedError, KeyError, IndexError)
# Words of libraries that a user should not have to read.
FOREIGN = ("Traceback (most recent", "object has no attribute", "unsupported operand", "TVMError")


def judge(error: BaseException, path: Path) -> str:
    """Return "refused", or what is wrong with a refusal."""
    text = str(error)
    if not isinstance(error, REFUSALS):
        return f"{type(error).__name__}: {text[:300]}"
    foreign = [word for word in FOREIGN if word in text]
    if foreign:
        return f"the words of a library: {text[:300]}"
    # What lies beside the file may be what is named: a shard that an index gives another name.
    if str(path.parent) not in text:
        return f"no file is named: {text[:300]}"
    return "refused"


def work(kind: str, seed: int, numbers: range) -> None:
    """Read inputs and print a line for each: its number before, what came of it after."""
    from targets import Targets

    with tempfile.TemporaryDirectory() as home:
        targets = Targets(Path(home))
        damage = targets.kinds()[kind]
        print("ready", flush=True)
        for number in numbers:
            print(f"begin {number}", flush=True)
            path, take = damage(Random(f"{kind} {seed} {number}"))
            try:
                take()
                result = "accepted"
            except AssertionError as error:
                result = f"wrong: {error}"
            except BaseException as error:
                result = judge(error, path)
            targets.restore(path)
            print(f"end {number} " + result.replace("\n", " "), flush=True)


def run(kind: str, seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """Have children read inputs of one kind; return counts and what failed."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    while numbers:
        with tempfile.TemporaryFile() as errors:
            current, ended = _run_child(kind, seed, numbers, errors, counts, failures)
            errors.seek(0)
            last = errors.read()[-600:].decode(errors="replace")
        numbers = range(current, numbers.stop)
        if numbers:
            counts[ended.partition(" ")[0]] += 1
            failures.append(f"{kind} {current}: {ended} {last}")
            numbers = numbers[1:]
    return counts, failures


def _run_child(
    kind: str,
    seed: int,
    numbers: range,
    errors: IO[bytes],
    counts: Counter[str],
    failures: list[str],
) -> tuple[int, str]:
    """Read inputs until a child ends; return the first number that it did not finish, and why."""
    command = [sys.executable, __file__, "--worker", kind, str(seed)]
    command += [str(numbers.start), str(numbers.stop)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True).start()
    current, ready = numbers.start, False
    while True:
        try:
            word, _, rest = lines.get(timeout=SECONDS).partition(" ")
        except queue.Empty:
            child.kill()
            child.wait()
            return current, "hung"
        if not word and not ready:
            child.wait()
            errors.seek(0)
            sys.exit(f"{kind}: no file to damage: {errors.read()[-2000:].decode(errors='replace')}")
        ready = True
        if not word:
            return current, f"crashed ({child.wait()})"
        if word == "end":
            current = int(rest.split()[0]) + 1
            result = rest.partition(" ")[2].strip()
            known = result in ("accepted", "refused")
            counts[result if known else "failed"] += 1
            if not known:
                failures.append(f"{kind} {current - 1}: {result}")


def _forward(stream: Iterable[str] | None, lines: queue.Queue[str]) -> None:
    """Put the lines of a stream into a queue, and an empty one at its end."""
    for line in stream or ():
        lines.put(line)
    lines.put("")


def main() -> int:
    """Parse the command line."""
    if sys.argv[1:2] == ["--worker"]:
        kind, seed, first, last = sys.argv[2:]
        work(kind, int(seed), range(int(first), int(last)))
        return 0
    kinds = [
        "safetensors",
        "index",
        "config.json",
        "tokenizer.json",
        "gguf",
        "mlc-chat-config.json",
    ]
    kinds += ["tensor-cache.json", "text", "saved sequence", "trace"]
    kinds += ["tokenizer_config.json", "questions", "suffix store", "round costs"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=kinds)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    chosen = [options.only] if options.only else kinds
    share = -(-options.inputs // len(chosen))
    total: Counter[str] = Counter()
    failed = []
    for kind in chosen:
        start = time.monotonic()
        counts, failures = run(kind, options.seed, range(options.first, options.first + share))
        total += counts
        failed += failures
        shown = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
        print(f"{kind:22} {shown} in {time.monotonic() - start:.0f} s", flush=True)
    for failure in failed:
        print(failure)
    print(f"{sum(total.values())} inputs: {dict(total)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
