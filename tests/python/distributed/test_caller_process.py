"""What else happens in the process that calls: signals in its part of a step, and threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

PROMPT = list(range(1, 30))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_signal_behind_the_first_workers_part(runner, monkeypatch, kind):
    runner.cache.add_sequence(0)
    before = np.from_dlpack(runner.prefill([0], [PROMPT])).copy()
    runner.cache.popn(0, len(PROMPT))

    def interrupted():  # where Python calls handlers of signals that came while the model ran
        monkeypatch.undo()
        raise kind("of a signal's handler")

    monkeypatch.setattr(runner._session.first, "_synchronize", interrupted)
    with pytest.raises(kind, match="of a signal's handler"):
        runner.prefill([0], [PROMPT])
    assert runner.cache.sequence_length(0) == 0
    np.testing.assert_array_equal(np.from_dlpack(runner.prefill([0], [PROMPT])), before)


def test_steps_of_two_threads_come_one_after_the_other(runner):
    ids = [0, 1]
    for seq_id in ids:
        runner.cache.add_sequence(seq_id)
        runner.prefill([seq_id], [PROMPT[: 5 + seq_id]])
    failed = []

    def decode(seq_id):
        try:
            for _ in range(50):
                runner.decode([seq_id], [1])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=decode, args=(seq_id,)) for seq_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [runner.cache.sequence_length(seq_id) for seq_id in ids] == [55, 56]


FORK = """
import os, sys
import numpy as np
from kvctl.distributed import ModelRunner

runner = ModelRunner.load(sys.argv[1], workers=2, threads=1, max_total_tokens=128)
runner.cache.add_sequence(0)
runner.prefill([0], [[1, 2, 3]])
before = np.from_dlpack(runner.decode([0], [4])).copy()
runner.cache.popn(0, 1)
child = os.fork()
if child == 0:
    try:
        runner.decode([0], [4])
    except RuntimeError as error:
        print(error, flush=True)
    if sys.argv[2] == "collected":
        del runner
    sys.exit(3)  # what is open is closed, and destroyed
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert (np.from_dlpack(runner.decode([0], [4])) == before).all()
runner.close()
print("parent", os.getpid())
"""


@pytest.mark.parametrize("how", ["collected", "open"])
def test_a_fork_leaves_the_session_to_its_parent(gloo, sharded_model, how):
    done = subprocess.run(
        [sys.executable, "-c", FORK, sharded_model, how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()
    assert parent.startswith("parent ")
    assert f"belongs to process {parent.split()[1]}, of which this one is a fork" in child
