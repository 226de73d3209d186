"""Two threads that generate on one runner: one is refused, and changes nothing for the other."""

from __future__ import annotations

import gc
import threading

import pytest

import kvctl
from fake_runner import FakeRunner
from kvctl.draft import LookupDrafter
from kvctl.engine.sole_use import SoleUse

PROMPTS = [list(range(1 + i, 60 + i)) for i in range(3)]


def test_the_thread_that_comes_second_is_refused(tiny_model):
    runner = kvctl.ModelRunner.load(tiny_model, max_sequences=8)
    expected = [kvctl.generate(runner, p, max_new_tokens=12).tokens for p in PROMPTS]
    free = runner.cache.num_available_tokens
    texts, refusals, others = [], [], []

    def generate(i, start):
        start.wait()
        drafter = LookupDrafter() if i == 1 else None
        try:
            text = kvctl.generate(runner, PROMPTS[i], max_new_tokens=12, seq_id=i, drafter=drafter)
            texts.append((i, text.tokens))
        except RuntimeError as error:
            refusals.append(str(error))
        except BaseException as error:
            others.append(error)

    for _ in range(40):
        start = threading.Barrier(3)
        threads = [threading.Thread(target=generate, args=(i, start)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert runner.cache.num_available_tokens == free
        assert not any(i in runner.cache for i in range(3))
    assert not others
    assert all(tokens == expected[i] for i, tokens in texts) and len(texts) >= 40
    assert set(refusals) <= {"another thread generates on this runner; one thread at a time"}
    assert refusals


def test_a_callback_may_generate_on_the_runner_that_calls_it():
    runner = FakeRunner()
    expected = kvctl.generate(runner, [1, 2], max_new_tokens=6).tokens
    inner = []

    def on_tokens(tokens):
        inner.append(kvctl.generate(runner, [1, 2], max_new_tokens=6, seq_id=5).tokens)
        in_thread(runner, refused=True)  # the outer text goes on

    assert kvctl.generate(runner, [1, 2], max_new_tokens=6, on_tokens=on_tokens).tokens == expected
    assert inner == [expected] * 6
    in_thread(runner, refused=False)


def in_thread(runner, *, refused):
    """Generate in another thread, and check whether that was refused."""
    raised = []

    def work():
        try:
            kvctl.generate(runner, [3], max_new_tokens=2, seq_id=9)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == refused


def test_a_use_that_never_ended_ends_with_its_object():
    runner = FakeRunner()
    use = SoleUse(runner)
    use.__enter__()
    in_thread(runner, refused=True)
    del use
    gc.collect()  # the refusal's traceback
    in_thread(runner, refused=False)


def test_a_runner_that_takes_no_weak_reference_is_not_watched():
    class Slotted:
        __slots__ = ()

    with SoleUse(Slotted()), SoleUse(Slotted()):
        pass
    with pytest.raises(ZeroDivisionError), SoleUse(Slotted()):
        raise ZeroDivisionError
