"""Ctrl-C takes effect behind what must not be cut in two."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
from threading import get_ident, main_thread
from typing import Any

# The functions of the module `signal` make enumerations of numbers: 4 microseconds each.
_SIGINT = int(signal.SIGINT)


class InterruptsDeferred:
    """A context in which Ctrl-C is noted; behind the outermost one it does what it does else.

    The second Ctrl-C within it does so at once. Nothing changes where Ctrl-C runs no function of
    Python's, or on another than the main thread.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._handler: Any = None
        self._came = False

    def _note(self, *args: object) -> None:
        again, self._came = self._came, True
        if again and self._handler is not None:
            self._handler(*args)

    def __enter__(self) -> None:
        if get_ident() != main_thread().ident:
            return
        if self._depth == 0:
            handler = _signal.getsignal(_SIGINT)
            if callable(handler):
                self._came, self._handler = False, handler
                _signal.signal(_SIGINT, self._note)
        self._depth += 1  # last: behind an interrupt in here, __exit__ is not called

    def __exit__(self, *_: object) -> None:
        if get_ident() != main_thread().ident:
            return
        self._depth -= 1
        if self._depth == 0 and self._handler is not None:
            handler, self._handler = self._handler, None
            _signal.signal(_SIGINT, handler)
            if self._came:
                signal.raise_signal(_SIGINT)


#: The one of this process.
DEFERRED = InterruptsDeferred()
