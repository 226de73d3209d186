"""Kill a worker at a random moment, many times: an error within ten seconds, and nothing left.

python tests/fuzz/kill_workers.py MODEL_DIR [--times 100] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time
from pathlib import Path

import kvctl
from kvctl.distributed import ModelRunner, WorkerError


def once(directory: str, workers: int, seed: int) -> float:
    """Kill one worker while texts are generated; return how long the error took."""
    rng = random.Random(seed)
    runner = ModelRunner.load(directory, workers=workers, threads=1)
    pids = [runner._session._processes.pid(i) for i in range(1, workers)]
    victim = rng.choice(pids)
    drafter = rng.choice([None, kvctl.draft.LookupDrafter()])
    killed = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(victim, signal.SIGKILL)

    threading.Timer(rng.uniform(0, 0.5), kill).start()
    try:
        while True:
            kvctl.generate(runner, [1, 2, 3, 4, 2, 3], max_new_tokens=40, drafter=drafter)
    except WorkerError as error:
        seconds = time.monotonic() - killed[0]
        assert f"process {victim}" in str(error), error
        said = str(error)
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        raise AssertionError(f"process {pid} is left behind")
    assert seconds < 10, seconds
    assert runner.cache.empty, "generate has left sequences"
    for call in (lambda: runner.decode([0], [1]), lambda: runner.cache.add_sequence(0)):
        try:
            call()
        except WorkerError as error:
            assert str(error) == said, error
        else:
            raise AssertionError("a dead session takes calls")
    return seconds


def main() -> None:
    """Run the rounds and print the longest wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    waits = []
    for seed in range(arguments.times):
        waits.append(once(arguments.directory, arguments.workers, seed))
        print(f"{seed + 1}: {waits[-1]:.2f} s", flush=True)
    # What is left of a session: threads, and ends of pipes and sockets.
    ends = len(list(Path("/proc/self/fd").iterdir()))
    print(f"{threading.active_count()} threads and {ends} open files are left")
    with ModelRunner.load(arguments.directory, workers=arguments.workers, threads=1) as runner:
        kvctl.generate(runner, [1, 2, 3], max_new_tokens=8)
    print(f"{len(waits)} kills, an error each time, after {max(waits):.2f} s at most")


if __name__ == "__main__":
    main()
