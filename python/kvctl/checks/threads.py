"""Whether logits are the same bits with other numbers of threads, which takes other processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .bitwise import Finding, decode_alone, decode_in_chunks

if TYPE_CHECKING:
    from ..engine.protocol import Runner


def check_threads(model: str, threads: Sequence[int], *, rows: int = 16) -> Iterator[Finding]:
    """Compare digests of the logits of processes with other numbers of threads.

    Parameters
    ----------
    model
        As the commands take it.
    threads
        Numbers of threads, for OpenMP and for TVM.
    rows
        Tokens to decode, one by one and at once.

    Yields
    ------
    Finding
        For each number but the first, which the others are compared with.
    """
    digests = [_digests_with(model, count, rows) for count in threads]
    for count, digest in zip(threads[1:], digests[1:], strict=True):
        places = [i for i, (a, b) in enumerate(zip(digests[0], digest, strict=True)) if a != b]
        where = f"row {places[0]}" if places else ""
        difference = float("nan") if places else 0.0
        what = f"{count} threads beside {threads[0]}"
        yield Finding(what, not places, difference, 0, where)


def digests(runner: Runner, rows: int, seed: int = 0) -> list[str]:
    """Return a digest of each row of logits: decoded one by one, then all at once."""
    chain, reference = decode_alone(runner, rows, seed)
    [at_once] = decode_in_chunks(runner, chain, rows)
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in (*reference, *at_once)]


_CHILD = """
import json, sys
from kvctl.checks.threads import digests
from kvctl.open_runner import open_runner
print(json.dumps(digests(open_runner(sys.argv[1], talks=False), int(sys.argv[2]))))
"""


def _digests_with(model: str, threads: int, rows: int) -> list[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TVM_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, str(rows)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"the process with {threads} threads failed: {lines[-1]}")
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found
