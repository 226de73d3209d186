"""A session of workers: TVM's Disco starts them, and our sockets carry the steps."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import json
import os
import socket
import weakref
from collections.abc import Sequence
from functools import partial
from threading import RLock, Thread
from typing import Any, NamedTuple

from tvm_ffi import get_global_func

from . import collectives
from .errors import WorkerError
from .hosts import Hosts
from .interrupts import DEFERRED
from .listener import Listener
from .messages.reports import Reports
from .messages.wire import JOIN, Port, pack
from .place import WORKERS, place_of
from .processes import Processes
from .steps import Steps
from .worker_state import Worker

_TOKENS = itertools.count(1)
_OPEN: weakref.WeakSet[Session] = weakref.WeakSet()
#: Seconds for imports and for reading a model: a death is noticed at once all the same.
START_SECONDS = 600.0
_GOODBYE_SECONDS = 5.0
#: For which threads that wait for each other stay awake, where each has a core of its own.
_SPIN_SECONDS = 200e-6


class _Step(NamedTuple):
    """What workers are to do, and what each has been sent of it."""

    number: int
    kind: bytes
    payload: bytes
    sent: dict[int, list[int]]
    reports: Reports


class Session:
    """Workers, of which the first is the thread that makes a call.

    Parameters
    ----------
    workers : int
        How many.
    hosts : sequence of str, optional
        The address of this machine, and those of the other workers' machines; see
        :mod:`kvctl.distributed.hosts`. By default all workers are on this machine.
    port : int
        Where this machine listens for the others; the next one is Disco's.
    library : {"gloo", "nccl"}
        The collectives.
    threads : int, optional
        OpenMP threads of each; by default this machine's cores, shared out.
    patience : float
        Seconds after which a worker that is silent during a call is given up.
    """

    def __init__(
        self,
        workers: int,
        *,
        hosts: Sequence[str] = (),
        port: int = 9090,
        library: str = "gloo",
        threads: int | None = None,
        patience: float = 8.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        collectives.load(library)
        self.workers = workers
        self.closed = False
        self._library = library
        self._patience = patience
        self.lock = RLock()
        self._numbers = itertools.count(1)
        self._meetings = itertools.count(1)
        cores = len(os.sched_getaffinity(0))
        local = 1 if hosts else workers
        self.threads = max(1, cores // local) if threads is None else threads
        self._token = os.getpid() << 20 | next(_TOKENS)
        self._processes: Processes | Hosts = (
            Hosts(self._token, hosts, port)
            if hosts
            else Processes(self._token, {"OMP_NUM_THREADS": str(self.threads)})
        )
        own, ours = socket.socketpair()
        self.first = Worker(0, Port(own), *hosts[:1])
        WORKERS[self._token] = self.first
        self._listener = Listener(self.first, Port(ours))
        self._spin = _SPIN_SECONDS if local * self.threads <= cores else 0.0
        self._steps = Steps(self._spin, self._listener.look_around)
        self._death: tuple[str, int] | None = None  # the message and the worker
        self._why_closed = "the session of workers is closed: load the model again"
        self._place: Any = None
        self.last_reports: Reports | None = None  #: of the last call, with its times
        _OPEN.add(self)
        try:
            self._open()
        except BaseException:
            self.close(kill=True)
            raise

    def _open(self) -> None:
        """Start the workers and connect them."""
        self._disco: Any = self._processes.open(self.workers)
        self._listener.start(self._processes.ports)
        self._steps.add(self._processes.steps)
        ended = self._processes.ended()
        if ended is not None:
            self.give_up(ended, self._processes.how_it_ended(ended), "while the workers started")
        self._have_workers_serve()
        self._place = place_of(self.first, self._token)
        self.join()

    def _have_workers_serve(self) -> None:
        # Disco's session must not be a variable where an exception passes: it would live on.
        find = get_global_func("runtime.disco.SessionGetGlobalFunc")
        get_global_func("runtime.disco.SessionCallPacked")(
            self._disco,
            0,
            0,
            find(self._disco, "kvctl.distributed.serve"),
            *(self._token, self._library, self.threads, round(self._spin * 1e6)),
        )
        get_global_func("runtime.disco.SessionSyncWorker")(self._disco, 0)

    def join(self) -> None:
        """Connect the workers, anew where their connections were closed.

        Raises
        ------
        WorkerError
            If they cannot be connected; the session is closed.
        """
        meeting = f"{self._token}.{next(self._meetings)}"
        reports = self.call(
            JOIN,
            json.dumps([self._library, meeting, 60_000]).encode(),
            patience=START_SECONDS,
            doing="while the workers were connecting",
        )
        if reports.failures:
            worker, failure = reports.cause()
            self.give_up(worker, f"could not connect ({failure.message})", "with the others")

    def call(
        self,
        kind: bytes,
        payload: bytes,
        *,
        patience: float | None = None,
        doing: str,
        who: int = -1,
    ) -> Reports:
        """Have workers do something, and wait until all have reported.

        Ctrl-C takes effect behind it.

        Parameters
        ----------
        kind : {JOIN, LOAD, EXECUTE}
            What; see :meth:`kvctl.distributed.worker_state.Worker.do`.
        payload : bytes
            What they are told of it.
        patience : float, optional
            Seconds of silence after which a worker is given up.
        doing : str
            What an error says of the moment.
        who : int
            The workers, a bit for each.

        Returns
        -------
        Reports
            How it went on each worker.

        Raises
        ------
        WorkerError
            If a worker died, does not answer, or left the others behind; the session is closed.
            Or if it was closed so before.
        RuntimeError
            If the session is closed.
        """
        with self.lock, DEFERRED:
            self.require_open()
            number = next(self._numbers)
            seconds = self._patience if patience is None else patience
            reports = Reports(number, self.workers, who, seconds)
            others: dict[int, list[int]] = {i: [] for i in sorted(reports.missing) if i > 0}
            self.last_reports = reports
            step = _Step(number, kind, payload, others, reports)
            try:
                self._do(step)
            except BaseException:
                # Of a signal's handler. The step goes on where it was left: each worker does a
                # thing of one number once.
                try:
                    self._do(step)
                except BaseException:
                    self.close(kill=True)  # nobody knows where it is
                    raise
                raise
            finally:
                self._listener.follow(None)
            if reports.lost is not None:
                worker, what = reports.lost
                self.give_up(worker, what or self._processes.how_it_ended(worker), doing)
            return reports

    def _do(self, step: _Step) -> None:
        """Send a step, make worker 0's part of it, and collect the reports."""
        reports = step.reports
        self._listener.follow(reports)
        message = pack(step.kind, step.number, step.payload)
        for worker, sent in step.sent.items():
            self._steps.send(worker, message, sent, reports)
        if 0 in reports.missing and reports.lost is None:
            with self._place:
                done = self.first.run(step.number, partial(self.first.do, step.kind, step.payload))
            reports.take(0, done)
        self._steps.collect(reports)

    def give_up(self, worker: int, what: str, doing: str) -> None:
        """Close the session and say whose fault it is."""
        message = (
            f"{self.name(worker)} {what} {doing}; the session is closed, and its workers have "
            "ended: load the model again"
        )
        self._death = message, worker
        self.close(kill=True)
        raise WorkerError(message, worker=worker, closed=True)

    def require_open(self) -> None:
        """Raise, where the session is closed: WorkerError behind a death, as then."""
        if self._death is not None:
            message, worker = self._death
            raise WorkerError(message, worker=worker, closed=True)
        if self.closed:
            raise RuntimeError(self._why_closed)

    def name(self, worker: int) -> str:
        """Return what a message calls a worker."""
        pid = self._processes.pid(worker)
        if isinstance(self._processes, Hosts):
            return f"worker {worker} (on {pid})"
        return f"worker {worker}" + ("" if pid is None else f" (process {pid})")

    def close(self, *, kill: bool = False) -> None:
        """End the workers. Nothing happens if that was done.

        Parameters
        ----------
        kill : bool
            Do not wait for them to finish.
        """
        with self.lock:
            if self.closed:
                return
            self.closed = True
            _OPEN.discard(self)
            if kill:
                self._processes.kill()
            self._steps.close()  # the others return to Disco, which bids them farewell
            ending = Thread(target=self._end_disco, daemon=True)
            ending.start()
            ending.join(_GOODBYE_SECONDS)
            self._processes.reap(0 if kill else _GOODBYE_SECONDS)
            self._listener.close()
            self.first.leave()
            WORKERS.pop(self._token, None)

    def leave_to_parent(self) -> None:
        """Close nothing but this process's copies of the sockets: a fork of the owner's calls it.

        The destructors of Disco and of the collectives wait for threads that a fork does not have,
        so what they destroy stays until the process ends.
        """
        self.closed, self.lock = True, RLock()  # another thread may have held the lock
        self._why_closed = (
            f"the session of workers belongs to process {os.getppid()}, of which this one is a "
            "fork: load the model here"
        )
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        self._processes.close_copies()
        self._listener.close_copies()
        self.first.port.close()

    def _end_disco(self) -> None:
        if hasattr(self, "_disco") and self._processes.may_end(self._disco):
            # The destructor joins worker 0's thread, and holds Python's lock meanwhile: that thread
            # must have left Python before.
            get_global_func("runtime.disco.SessionSyncWorker")(self._disco, 0)
        self._place = self._disco = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_processes"):
            self.close(kill=True)


@atexit.register
def _close_all() -> None:
    for session in list(_OPEN):
        session.close(kill=True)


def _leave_all() -> None:
    for session in list(_OPEN):
        session.leave_to_parent()
    _OPEN.clear()


os.register_at_fork(after_in_child=_leave_all)
