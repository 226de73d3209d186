"""Which thread generates on a runner: one at a time, and a second one is refused at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from .protocol import Runner

_lock = threading.Lock()
_uses: WeakKeyDictionary[Runner, ref[SoleUse]] = WeakKeyDictionary()


class SoleUse:
    """A runner while one thread generates on it; a context manager.

    Without it, two threads would meet inside the cache, in the middle of a forward of one of them.
    The same thread may enter again: a callback or a drafter may generate on the runner that calls
    it. What holds a use is the object alone, so one whose end was interrupted ends with it.

    Parameters
    ----------
    runner
        The runner. One that has no hash, or takes no weak reference, is not watched.

    Raises
    ------
    RuntimeError
        When it is entered while another thread generates on the runner.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread: int | None = None
        self._outer: SoleUse | None = None

    def __enter__(self) -> None:
        try:
            with _lock:
                self._thread, self._outer = threading.get_ident(), self._now()
                if self._outer is not None and self._outer._thread != self._thread:
                    self._thread = self._outer = None
                    raise RuntimeError(
                        "another thread generates on this runner; one thread at a time"
                    )
                _uses[self._runner] = ref(self)
        except TypeError:
            pass

    def __exit__(self, *error: object) -> None:
        if self._thread is None:
            return
        with _lock:
            self._thread = None
            outer = self._outer
            if outer is not None and outer._thread is not None:
                _uses[self._runner] = ref(outer)
            else:
                _uses.pop(self._runner, None)
            self._outer = None

    def _now(self) -> SoleUse | None:
        """Return the use that has not ended."""
        known = _uses.get(self._runner)
        use = None if known is None else known()
        return use if use is not None and use._thread is not None else None
