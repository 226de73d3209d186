"""Workers that fail, die, stop or fall behind: an error names them, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

import kvctl
from kvctl.distributed import ModelRunner, WorkerError

pytestmark = pytest.mark.usefixtures("gloo")
PROMPT = list(range(1, 30))


def pid_of(runner):
    return runner._session._processes.pid(1)


def gone(pid):
    """Return whether a process, a child of this one, has ended and was waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def load(directory, **options):
    runner = ModelRunner.load(directory, workers=2, threads=1, **options)
    runner.cache.add_sequence(0)
    return runner


def test_killed_between_steps_and_the_next_session(sharded_model):
    runner = load(sharded_model)
    runner.prefill([0], [PROMPT])
    pid = pid_of(runner)
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(
        WorkerError, match=rf"worker 1 \(process {pid}\) was ended by signal 9"
    ) as error:
        runner.decode([0], [1])
    assert time.monotonic() - begun < 10
    assert error.value.worker == 1 and error.value.closed and gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        runner.decode([0], [1])
    runner.close()
    with load(sharded_model) as again:
        again.prefill([0], [PROMPT])


def test_every_call_behind_a_death_names_the_worker(sharded_model):
    runner = load(sharded_model)
    cache = runner.cache
    runner.prefill([0], [PROMPT])
    runner.verify([0], [kvctl.TokenTree.chain([1, 2])])
    checkpoint = cache.checkpoint(0)
    pid = pid_of(runner)
    os.kill(pid, signal.SIGKILL)
    changes = {
        "forward": lambda: runner.forward([0], [[1]]),
        "prefill": lambda: runner.prefill([0], [[1]]),
        "decode": lambda: runner.decode([0], [1]),
        "verify": lambda: runner.verify([0], [kvctl.TokenTree.chain([1])]),
        "embed": lambda: runner.embed([1]),
        "generate": lambda: kvctl.generate(runner, PROMPT, max_new_tokens=4, seq_id=2),
        "add_sequence": lambda: cache.add_sequence(3),
        "fork_sequence": lambda: cache.fork_sequence(0, 3),
        "commit": lambda: cache.commit([0], [[0]]),
        "popn": lambda: cache.popn(0, 1),
        "checkpoint": lambda: cache.checkpoint(0),
        "rollback": lambda: cache.rollback(0, checkpoint),
        "evict": lambda: cache.evict(0, [0]),
        "enable_sliding_window": lambda: cache.enable_sliding_window(0, 8),
    }
    rest = {
        "contains": lambda: 0 in cache,
        "sequence_ids": lambda: cache.sequence_ids,
        "sequence_length": lambda: cache.sequence_length(0),
        "pending_length": lambda: cache.pending_length(0),
        "num_available_tokens": lambda: cache.num_available_tokens,
        "abort": cache.abort,
        "remove_sequence": lambda: cache.remove_sequence(0),
        "clear": cache.clear,
    }

    def assert_dead(calls):
        for name, call in calls.items():
            with pytest.raises(WorkerError, match=rf"worker 1 \(process {pid}\) was") as error:
                call()
            assert error.value.worker == 1 and error.value.closed, name

    with pytest.raises(WorkerError, match=rf"worker 1 \(process {pid}\)"):
        runner.decode([0], [1])
    assert_dead(changes)
    assert cache.sequence_ids == [0] and cache.sequence_length(0) == len(PROMPT) + 2
    for call in rest.values():
        call()
    assert cache.empty


def test_a_session_that_was_closed_says_so(sharded_model):
    runner = load(sharded_model)
    runner.close()
    for call in (lambda: runner.decode([0], [1]), lambda: runner.cache.add_sequence(1)):
        with pytest.raises(RuntimeError, match="is closed: load the model again") as error:
            call()
        assert not isinstance(error.value, WorkerError)
    assert runner.cache.sequence_ids == [0]


@pytest.mark.parametrize("model", ["sharded_model", "whole_model"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("KVCTL_KILLS", "2"))))
def test_killed_at_a_random_moment(request, model, seed):
    runner = load(request.getfixturevalue(model))
    pid = pid_of(runner)
    wait = random.Random(seed).uniform(0.001, 0.4)
    killed = []

    def kill():
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    threading.Timer(wait, kill).start()
    with pytest.raises(WorkerError, match="worker 1"):
        while True:
            runner.prefill([0], [PROMPT])
            runner.cache.popn(0, len(PROMPT))
    assert time.monotonic() - killed[0] < 10 and gone(pid)


def test_a_stopped_worker_is_given_up(sharded_model):
    runner = load(sharded_model, patience=1.5)
    pid = pid_of(runner)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 1 .* has not answered"):
        runner.prefill([0], [PROMPT])
    assert time.monotonic() - begun < 10 and gone(pid)


def test_a_worker_that_is_done_waits_for_the_first(sharded_model):
    with load(sharded_model, patience=1.5) as runner:
        calls = []
        with runner.functions.instrumented(lambda *_: calls.append(1)):
            runner.prefill([0], [PROMPT])
        last = len(calls)

        def hold(*_):
            calls.append(1)
            if len(calls) == 2 * last:
                time.sleep(3)

        with runner.functions.instrumented(hold):
            runner.prefill([0], [PROMPT])
        assert runner.cache.sequence_length(0) == 2 * len(PROMPT)


def test_close_waits_for_a_step_of_another_thread(sharded_model):
    runner = load(sharded_model)
    runner.prefill([0], [PROMPT])
    within, may_go_on, said = threading.Event(), threading.Event(), []

    def hold(*_):
        within.set()
        may_go_on.wait(10)

    def step():
        with runner.functions.instrumented(hold):
            said.append(runner.decode([0], [1]))

    threads = [threading.Thread(target=step), threading.Thread(target=runner.close)]
    threads[0].start()
    assert within.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive() and not runner._session.closed
    may_go_on.set()
    for thread in threads:
        thread.join(30)
    assert said and runner._session.closed and runner.cache.sequence_length(0) == len(PROMPT) + 1


@pytest.mark.parametrize(
    ("when", "kind"),
    [(1, ArithmeticError), (20, ArithmeticError), (20, ValueError)],  # as of a user's mistake
)
def test_one_worker_fails_alone(runner, when, kind):
    runner.cache.add_sequence(0)
    before = np.from_dlpack(runner.prefill([0], [PROMPT])).copy()
    runner.cache.popn(0, len(PROMPT))
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == when:
            raise kind("a layer that went wrong")

    with (
        runner.functions.instrumented(fail),
        pytest.raises(WorkerError, match=r"worker 0.*went wrong") as error,
    ):
        runner.prefill([0], [PROMPT])
    assert not error.value.closed and error.value.worker == 0
    assert runner.cache.sequence_length(0) == 0
    np.testing.assert_array_equal(np.from_dlpack(runner.prefill([0], [PROMPT])), before)


def test_a_worker_that_fell_behind(sharded_model):
    runner = load(sharded_model)
    runner.prefill([0], [PROMPT])
    kvctl.PagedKVCache.popn(runner.cache, 0, 1)  # the journal knows nothing of it
    with pytest.raises(WorkerError, match=r"worker 1 .* could not follow the others"):
        runner.decode([0], [1])


def test_control_c_takes_effect_behind_the_step(runner):
    runner.cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    ended = threading.Event()

    def interrupt(*_):
        if not ended.is_set():
            ended.set()
            os.kill(os.getpid(), signal.SIGINT)

    with runner.functions.instrumented(interrupt), pytest.raises(KeyboardInterrupt):
        while True:
            runner.decode([0], [1])
    assert ended.is_set()
    length = runner.cache.sequence_length(0)
    runner.decode([0], [2])
    assert runner.cache.sequence_length(0) == length + 1


def test_close_ends_the_processes(sharded_model):
    runner = load(sharded_model)
    pid = pid_of(runner)
    runner.close()
    runner.close()
    assert gone(pid)
