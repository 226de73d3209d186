"""Ctrl-C waits for the end of what must not be cut in two."""

from __future__ import annotations

import signal
import threading

import pytest

from kvctl.distributed.interrupts import InterruptsDeferred


@pytest.fixture
def handler():
    """The handler of Ctrl-C that a test finds, and leaves."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before


def test_it_takes_effect_behind_the_outermost(handler):
    deferred, done = InterruptsDeferred(), []
    with pytest.raises(KeyboardInterrupt), deferred:
        with deferred:
            signal.raise_signal(signal.SIGINT)
            done.append("within")
        done.append("behind the inner one")
    assert done == ["within", "behind the inner one"]


def test_the_second_takes_effect_at_once(handler):
    deferred, done = InterruptsDeferred(), []
    with pytest.raises(KeyboardInterrupt), deferred:
        signal.raise_signal(signal.SIGINT)
        done.append("once")
        signal.raise_signal(signal.SIGINT)
        done.append("twice")
    assert done == ["once"]


def test_a_handler_of_the_users(handler):
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(1))
    mine = signal.getsignal(signal.SIGINT)
    with InterruptsDeferred():
        signal.raise_signal(signal.SIGINT)
        assert not came
    assert came == [1] and signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_no_handler_of_pythons(handler, ignored):
    signal.signal(signal.SIGINT, ignored)
    with InterruptsDeferred():
        assert signal.getsignal(signal.SIGINT) is ignored
    signal.signal(signal.SIGINT, handler)


def test_an_error_goes_its_way(handler):
    with pytest.raises(ValueError, match="its way"), InterruptsDeferred():
        raise ValueError("its way")


def test_another_thread_changes_nothing(handler):
    found = []

    def look():
        with InterruptsDeferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [handler]


def test_an_interrupt_at_its_beginning_leaves_it_whole(handler, monkeypatch):
    def interrupted(*_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    deferred, done = InterruptsDeferred(), []
    monkeypatch.setattr("kvctl.distributed.interrupts._signal.getsignal", interrupted)
    with pytest.raises(KeyboardInterrupt), deferred:
        done.append("not reached")
    with pytest.raises(KeyboardInterrupt), deferred:
        signal.raise_signal(signal.SIGINT)
        done.append("within")
    assert done == ["within"]
