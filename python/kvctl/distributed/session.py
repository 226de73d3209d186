"""A session of workers: calls go out by TVM's Disco, and reports come back by sockets of ours."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import socket
import weakref
from collections.abc import Iterable, Sequence
from threading import RLock, Thread
from typing import Any

import tvm_ffi
from tvm_ffi import get_global_func

from . import collectives
from .errors import WorkerError
from .hosts import Hosts
from .processes import Processes
from .reports import Reports
from .wire import BREAK, VALUE, Port
from .worker_state import WORKERS, Worker

_TOKENS = itertools.count(1)
_OPEN: weakref.WeakSet[Session] = weakref.WeakSet()
#: Seconds for imports and for reading a model: a death is noticed at once all the same.
_START_SECONDS = 600.0
_GOODBYE_SECONDS = 5.0


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
        self._ports = {0: Port(ours)}
        self._poll = select.poll()
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
        self._ports |= self._processes.ports
        self._numbers_by_fd = {port.fileno(): number for number, port in self._ports.items()}
        for port in self._ports.values():
            self._poll.register(port.fileno(), select.POLLIN)
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
            patience=_START_SECONDS,
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
        RuntimeError
            If the session is closed.
        """
        with self._lock:
            if self.closed:
                raise RuntimeError("the session of workers is closed: load the model again")
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

    def load(self, directory: str, device: str, kv_dtype: str, sizes: Any) -> None:
        """Load a model on every worker; :meth:`kvctl.distributed.worker_state.Worker.load`.

        Raises
        ------
        WorkerError
            If a worker fails alone; or as the load of a model raises.
        """
        reports = self.call(
            "load",
            directory,
            device,
            kv_dtype,
            tvm_ffi.Shape(sizes),
            self.threads,
            patience=_START_SECONDS,
            doing="while it loaded the model",
        )
        if reports.failures:
            worker, failure = reports.cause()
            if self.first.error is not None and worker == 0:
                raise self.first.error
            raise WorkerError(
                f"{self.name(worker)} could not load its part of the model: {failure.kind}: "
                f"{failure.message}",
                worker=worker,
                closed=True,
            )

    def _collect(self, reports: Reports, doing: str) -> None:
        told: set[int] = set()
        while reports.missing:
            ready = self._poll.poll(reports.milliseconds())
            for fd, _ in ready:
                number = self._numbers_by_fd[fd]
                try:
                    for news in self._ports[number].receive():
                        reports.heard(number)
                        if news.kind == VALUE:
                            self._hand_out(news.payload)
                        else:
                            reports.take(number, news)
                except EOFError:
                    self.give_up(number, self._processes.how_it_ended(number), doing)
            silent = reports.silent()
            if silent is not None:
                seconds = f"has not answered for {reports.patience:.0f} s"
                self.give_up(silent, seconds, doing)
            if reports.blocked():
                self._leave(reports.failures)
            if self._library == "nccl" and reports.broken and reports.missing - told:
                self._leave(reports.missing - told)
                told |= reports.missing
        if reports.diverged is not None:
            worker, message = reports.diverged
            self.give_up(worker, f"could not follow the others ({message})", doing)

    def _hand_out(self, payload: bytes) -> None:
        """Tell all workers what one of them has to say."""
        self.first.learn(payload)
        for number, port in self._ports.items():
            if number > 0:
                with contextlib.suppress(OSError):  # a dead worker is noticed by its socket's end
                    port.send(VALUE, 0, payload)

    def _leave(self, workers: Iterable[int]) -> None:
        """Close connections, so that workers that wait in collectives raise.

        With Gloo those of workers that wait for nothing: one that waits is not woken by closing its
        own end, and then hears nothing of the other's. With NCCL those of workers that wait, which
        nothing else wakes.
        """
        for number in workers:
            if number == 0:
                self.first.close_connections()
            else:
                with contextlib.suppress(OSError):
                    self._ports[number].send(BREAK)

    def give_up(self, worker: int, what: str, doing: str) -> None:
        """Close the session and say whose fault it is."""
        name = self.name(worker)
        self.close(kill=True)
        raise WorkerError(
            f"{name} {what} {doing}; the session is closed, and its workers have ended: load the "
            "model again",
            worker=worker,
            closed=True,
        )

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
                self._processes.kill()  # which wakes worker 0, if it waits for one of them
                if self._library == "nccl":  # whose waits end by one's own abort alone
                    self.first.close_connections()
            # Its cache is the user's, who removes what the step had begun.
            self.first.has_ended(self._sent, _GOODBYE_SECONDS)
            # Disco's session joins the thread of worker 0, which is in a collective perhaps.
            ending = Thread(target=self._end_disco, daemon=True)
            ending.start()
            ending.join(_GOODBYE_SECONDS)
            self._processes.reap(0 if kill else _GOODBYE_SECONDS)
            for port in self._ports.values():
                port.close()
            if not ending.is_alive():
                self.first.port.close()
                WORKERS.pop(self._token, None)

    def is_stuck(self) -> bool:
        """Return whether worker 0 is in a call that the session did not wait for.

        It waits for a machine that is stopped, up to the timeout of the collectives.
        """
        return self.closed and not self.first.has_ended(self._sent)

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
