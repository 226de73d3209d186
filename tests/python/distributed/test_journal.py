"""What is noted for the other workers."""

from __future__ import annotations

import _thread
import time

import pytest

from kvctl.distributed.messages.journal import Journal
from kvctl.distributed.messages.program import Call, Own

CALL = Call("vm.kv_state_clear", (Own.CACHE,))


def test_an_interrupt_does_not_lose_the_note():
    journal = Journal()
    with pytest.raises(KeyboardInterrupt):
        journal.change(CALL, _thread.interrupt_main, ())  # as Ctrl-C during the change
        time.sleep(0)  # Python looks for interrupts behind calls
    assert journal.calls == [CALL]


def test_what_raises_is_not_noted():
    journal = Journal()
    with pytest.raises(ValueError):
        journal.change(CALL, int, ("no number",))
    assert not journal.calls


def test_a_note_that_comes_while_others_are_forgotten_stays():
    late = Call("forget", ())

    class Calls(list):
        """Python may run a finalizer, which notes something, wherever it makes a list."""

        def __getitem__(self, place):
            found = super().__getitem__(place)
            self.append(late)
            return found

        def __delitem__(self, place):
            super().__delitem__(place)
            self.append(late)

    journal = Journal()
    journal.calls = Calls([CALL, CALL])
    journal.forget(2)
    assert (journal.first, list(journal.calls)) == (2, [late])
