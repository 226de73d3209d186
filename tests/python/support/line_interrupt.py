"""A Ctrl-C that comes exactly before the n-th line of some files.

A real one never comes between the end of a ``with`` block and its ``__exit__``, but here it may:
leave files out that hold a lock.
"""

from __future__ import annotations

import contextlib
import sys


@contextlib.contextmanager
def interrupt_at_line(n, folders, without=()):
    """Raise KeyboardInterrupt before the n-th line that runs in a file below one of the folders."""
    left = n

    def lines(frame, event, arg):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return lines

    def calls(frame, event, arg):
        name = frame.f_code.co_filename
        return lines if name.startswith(folders) and not name.endswith(without) else None

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        yield
    finally:
        sys.settrace(before)
