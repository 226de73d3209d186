"""What else happens in the process that calls: signals in its part of a step, and threads."""

from __future__ import annotations

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
