"""Where Disco's workers enter kvctl's part, and how the caller's thread is the first of them."""

from __future__ import annotations

import ctypes
from typing import Any

from tvm_ffi import get_global_func, register_global_func

from .messages.wire import Port
from .worker_state import Worker

#: The workers of this process, by the session's token.
WORKERS: dict[int, Worker] = {}
#: Where the steps of those come from that are no controller's.
STEPS: dict[int, Port] = {}
#: The places of worker 0, by the session's token.
PLACES: dict[int, Place] = {}


class Place:
    """A context in which the thread is worker 0, instead of Disco's thread.

    What computes waits for no other thread so. A thread that is woken costs more than all else that
    the controller does in a step.

    Parameters
    ----------
    library : {"gloo", "nccl"}
        The collectives.
    threads : int
        OpenMP threads of the worker.
    """

    def __init__(self, library: str, threads: int) -> None:
        self._become = get_global_func(f"runtime.disco.{library}.place")()
        self._threads = threads
        self._before = threads
        self._openmp = ctypes.PyDLL("libgomp.so.1")

    def __enter__(self) -> None:
        self._become(True)
        self._before = self._openmp.omp_get_max_threads()
        if self._before != self._threads:
            self._openmp.omp_set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        if self._before != self._threads:
            self._openmp.omp_set_num_threads(self._before)
        self._become(False)


def _serve(token: int, library: str, threads: int, spin: int) -> None:
    """Be a worker: in another process until the session is closed.

    Disco calls it. An exception would end the process: worker 0's place is missing then.
    """
    worker = WORKERS[token]
    if worker.number > 0:
        worker.serve(STEPS[token], spin * 1e-6)
        return
    try:
        PLACES[token] = Place(library, threads)
    except Exception as error:
        worker.error = error


register_global_func("kvctl.distributed.serve", _serve)


def place_of(worker: Worker, token: int) -> Any:
    """Return worker 0's place.

    Raises
    ------
    Exception
        If Disco's thread could not tell it.
    """
    if token not in PLACES:
        raise worker.error or RuntimeError("Disco has not started the first worker")
    return PLACES.pop(token)
