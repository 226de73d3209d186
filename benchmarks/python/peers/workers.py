"""Engines that take turns, each in a process of its own: their thread pools disturb each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import sleep
from typing import Any


class Worker:
    """An engine in a process of its own; requests and answers are lines of JSON.

    The process runs the same program with ``--worker``, a name and an argument, and `serve`s.
    """

    def __init__(
        self, program: str, name: str, argument: str, python: str = sys.executable
    ) -> None:
        self.name = name
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        self._process = subprocess.Popen(
            [python, program, "--worker", name, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.version = self._answer()

    def ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """Return the engine's answer; the others' threads get time to fall asleep first."""
        sleep(0.05)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([operation, arguments, named]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def serve(open_engine: Callable[[], Any]) -> None:
    """Answer requests until the input ends: first with the engine's version."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; only answers go to stdout
    engine = open_engine()
    print(json.dumps(engine.version()), file=answers, flush=True)
    for line in sys.stdin:
        operation, arguments, named = json.loads(line)
        answer = getattr(engine, operation)(*arguments, **named)
        print(json.dumps(answer), file=answers, flush=True)


def in_turns(
    workers: Sequence[Worker], repeat: int, *request: Any, **named: Any
) -> dict[str, list[Any]]:
    """Ask every engine the same in turns; drop the first answers, which warm up."""
    answers: dict[str, list[Any]] = {worker.name: [] for worker in workers}
    for _ in range(repeat + 1):
        for worker in workers:
            answers[worker.name].append(worker.ask(*request, **named))
    return {name: values[1:] for name, values in answers.items()}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Summarize timings."""
    return {"median": median(seconds), "least": min(seconds), "most": max(seconds)}
