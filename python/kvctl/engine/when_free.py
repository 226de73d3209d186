"""A call on a cache that waits for another thread, where refusing it would leave half a change."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, sleep
from typing import TypeVar

Result = TypeVar("Result")

_PATIENCE = 5.0  # seconds


def when_free(call: Callable[[], Result]) -> Result:
    """Return what a call on a cache returns, as soon as no other thread uses the cache.

    Raises
    ------
    RuntimeError
        As the call raises it, if another thread uses the cache for seconds. An error of another
        class is no thread in the cache (a worker has died, say) and is raised at once.
    """
    end = perf_counter() + _PATIENCE
    while True:
        try:
            return call()
        except RuntimeError as error:
            if type(error) is not RuntimeError or perf_counter() > end:
                raise
        sleep(0.0005)
