"""A thread that meddles with a runner's cache: calls are refused, and no step stays open."""

from __future__ import annotations

import contextlib
import os
import random
import threading

import numpy as np
import pytest

import kvctl
from kvctl import ModelRunner, TokenTree

PROMPT = list(range(1, 60))


@contextlib.contextmanager
def meddling(*calls):
    """Make calls all the time, each in a thread of its own; what they raise is nobody's fault."""
    done = threading.Event()

    def work(call):
        while not done.is_set():
            with contextlib.suppress(RuntimeError):
                call()

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.fixture(params=["paged", "hybrid"])
def runner(request):
    if request.param == "paged":
        directory = request.getfixturevalue("tiny_model")
    else:
        directory = request.getfixturevalue("recurrent_models")("hybrid", emit_steps=True)
    return ModelRunner.load(directory, max_sequences=4, prefill_chunk_size=16)


def test_a_forward_that_another_thread_disturbs_leaves_no_step(runner):
    """Prompts in chunks, steps and trees: each happens, or is taken back as a whole."""
    cache = runner.cache
    cache.add_sequence(0)
    expected = np.from_dlpack(runner.prefill([0], [PROMPT])).copy()
    cache.popn(0, len(PROMPT))
    forwards = {
        "prefill": (lambda: runner.prefill([0], [PROMPT]), 59),
        "decode": (lambda: runner.decode([0], [5]), 1),
        "verify": (lambda: runner.verify([0], [TokenTree.chain([1, 2, 3, 4])]), 4),
    }
    refused = dict.fromkeys(forwards, 0)
    rng = random.Random(1)

    def look():
        assert cache.sequence_length(0) >= 0

    for turn in range(150):
        name = rng.choice(list(forwards))
        call, length = forwards[name]
        happened = True
        with meddling(look):
            try:
                call()
            except RuntimeError as error:
                assert "another thread" in str(error)
                refused[name] += 1
                happened = False
        # No step is open: the length tells what happened, and all can be taken back.
        assert cache.sequence_length(0) == (length if happened else 0), (turn, name)
        cache.popn(0, cache.sequence_length(0))
    if len(os.sched_getaffinity(0)) > 1:
        assert sum(refused.values()) > 0
    np.testing.assert_array_equal(np.from_dlpack(runner.prefill([0], [PROMPT])), expected)


class Busy:
    """The parts of a cache, in which another thread is for the first calls for pending nodes."""

    def __init__(self, parts, times):
        self._parts, self._left = parts, times

    def __getattr__(self, name):
        return getattr(self._parts, name)

    def pending_length(self, seq_id):
        self._left -= 1
        if self._left >= 0:
            raise RuntimeError("the cache is in use by another thread")
        return self._parts.pending_length(seq_id)


def test_a_forward_that_happened_is_not_refused(recurrent_models):
    """It was, where a thread came between the forward and the note of its tokens."""
    runner = ModelRunner.load(recurrent_models("hybrid", emit_steps=True), max_sequences=4)
    runner.cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    expected = np.from_dlpack(runner.decode([0], [7])).copy()
    runner.cache.popn(0, 2)
    runner.cache.parts, parts = Busy(runner.cache.parts, 3), runner.cache.parts
    runner.decode([0], [PROMPT[-1]])
    runner.cache.parts = parts
    np.testing.assert_array_equal(np.from_dlpack(runner.decode([0], [7])), expected)
    runner.cache.popn(0, 1)  # by what was noted
    np.testing.assert_array_equal(np.from_dlpack(runner.decode([0], [7])), expected)


def test_a_generation_that_another_thread_disturbs_leaves_nothing(runner):
    expected = kvctl.generate(runner, PROMPT, max_new_tokens=6).tokens
    cache, free = runner.cache, runner.cache.num_available_tokens
    runner.cache.add_sequence(3)

    def look():
        assert cache.sequence_length(3) == 0

    for _ in range(40):
        with meddling(look):
            try:
                text = kvctl.generate(runner, PROMPT, max_new_tokens=6)
                assert text.tokens == expected
            except RuntimeError as error:
                assert "another thread" in str(error)
        assert 0 not in cache and cache.num_available_tokens == free
    assert kvctl.generate(runner, PROMPT, max_new_tokens=6).tokens == expected
