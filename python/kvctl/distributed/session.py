"""A session of workers: calls go out by TVM's Disco, and reports come back by sockets of ours."""

from __future__ import annotations

import atexit
import itertools
import os
import socket
import weakref
from collections.abc import Sequence
from threading import RLock, Thread
from typing import Any

from tvm_ffi import get_global_func

from . import collectives
from .errors import WorkerError
from .hosts import Hosts
from .listener import Listener
from .processes import Processes
from .reports import Reports
from .wire import Port
from .worker_state import WORKERS, Worker

_TOKENS = itertools.count(1)
_OPEN: weakref.WeakSet[Session] = weakref.WeakSet()
#: Seconds for imports and for reading a model: a death is noticed at once all the same.
START_SECONDS = 600.0
_GOODBYE_SECONDS = 5.0
#: For worker 0, behind a death, when its connections are closed: it computes, perhaps.
_LEAVING_SECONDS = 2.0


class Session:
    """Workers, of which the first is a thread of this process.

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
        self._lock = RLock()
        self._numbers = itertools.count(1)
        self._meetings = itertools.count(1)
        self._sent = 0  # the number of the last call that worker 0 makes
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
        self._death: tuple[str, int] | None = None  # the message and the worker
        self._functions: dict[str, Any] = {}
        _OPEN.add(self)
        try:
            self._open()
        except BaseException:
            self.close(kill=True)
            raise

    def _open(self) -> None:
        """Start the workers and connect them."""
        self._disco: Any = self._processes.open(self.workers)
        self._listener.add(self._processes.ports)
        find = get_global_func("runtime.disco.SessionGetGlobalFunc")
        self._functions = {
            name: find(self._disco, f"kvctl.distributed.{name}")
            for name in ("join", "load", "execute")
        }
        self._call_packed = get_global_func("runtime.disco.SessionCallPacked")
        self.join()

    def join(self) -> None:
        """Connect the workers, anew where their connections were closed.

        Raises
        ------
        WorkerError
            If they cannot be connected; the session is closed.
        """
        meeting = f"{self._token}.{next(self._meetings)}"
        reports = self.call(
            "join",
            self._library,
            meeting,
            60_000,
            patience=START_SECONDS,
            doing="while the workers were connecting",
        )
        if reports.failures:
            worker, failure = reports.cause()
            self.give_up(worker, f"could not connect ({failure.message})", "with the others")

    def call(
        self, function: str, *args: Any, patience: float | None = None, doing: str, who: int = -1
    ) -> Reports:
        """Call a function on every worker, and wait until all have reported.

        Parameters
        ----------
        function : {"join", "load", "execute"}
            The function.
        args
            Its arguments behind the session's token and the call's number.
        patience : float, optional
            Seconds of silence after which a worker is given up.
        doing : str
            What an error says of the moment.
        who : int
            The workers that report, a bit for each.

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
        with self._lock:
            self.require_open()
            number = next(self._numbers)
            reports = Reports(
                number, self.workers, who, self._patience if patience is None else patience
            )
            ended = self._processes.ended()
            if ended is not None:
                self.give_up(ended, self._processes.how_it_ended(ended), doing)
            if who & 1:
                self._sent = number
            try:
                self._send(function, number, args)
                self._collect(reports, doing)
            except KeyboardInterrupt:
                # It takes effect behind the step, as behind any call of the library. The message
                # may not have gone out yet: workers do a thing of one number once.
                if not self.closed:
                    self._send(function, number, args)
                    self._collect(reports, doing)
                raise
            return reports

    def _send(self, function: str, number: int, args: Sequence[Any]) -> None:
        # Disco's session must not be a variable where an exception passes: it would live on.
        with self._processes.sending():
            self._call_packed(
                self._disco, 0, 0, self._functions[function], self._token, number, *args
            )

    def _collect(self, reports: Reports, doing: str) -> None:
        lost = self._listener.collect(reports)
        if lost is not None:
            worker, what = lost
            self.give_up(worker, what or self._processes.how_it_ended(worker), doing)

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
            raise RuntimeError("the session of workers is closed: load the model again")

    def require_left(self) -> None:
        """Raise, where worker 0 is in a call of a closed session still, and so uses the cache."""
        if self.closed and not self.first.has_ended(self._sent):
            self.require_open()

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
        with self._lock:
            if self.closed:
                return
            self.closed = True
            _OPEN.discard(self)
            if kill:
                self._processes.kill()
                self.first.close_connections()  # worker 0 may wait for one of them
            # Its cache is the user's, who removes what the step had begun.
            has_left = self.first.has_ended(
                self._sent, _LEAVING_SECONDS if kill else _GOODBYE_SECONDS
            )
            # Disco's session joins the thread of worker 0, which is in a collective perhaps.
            ending = Thread(target=self._end_disco, daemon=True)
            ending.start()
            ending.join(_GOODBYE_SECONDS if has_left else 0)
            self._processes.reap(0 if kill else _GOODBYE_SECONDS)
            self._listener.close()
            if not ending.is_alive():
                self.first.port.close()
                WORKERS.pop(self._token, None)

    def _end_disco(self) -> None:
        if hasattr(self, "_disco") and self._processes.may_end((self._disco, self._functions)):
            # The destructor joins worker 0's thread, and holds Python's lock meanwhile: that thread
            # must have left Python before.
            get_global_func("runtime.disco.SessionSyncWorker")(self._disco, 0)
        self._functions = {}
        self._disco = None

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
