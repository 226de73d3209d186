"""The processes of a session's workers on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import tvm_ffi
from tvm_ffi import get_global_func, register_global_func

from .messages.wire import Port

# Disco writes a whole call into a worker's pipe before it writes to the next.
_F_SETPIPE_SZ = 1031
PIPE_BYTES = 1 << 20

#: The processes of sessions that are being started, by their token.
_STARTING: dict[str, Processes] = {}


class Processes:
    """The workers of this machine that are processes: all but the first."""

    def __init__(self, token: int, environment: dict[str, str]) -> None:
        self.token = token
        self.ports: dict[int, Port] = {}
        self.steps: dict[int, Port] = {}
        self._environment = {**os.environ, **environment}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # A write into a pipe that nobody can read would be an error in a destructor of Disco's,
        # which ends this process: both ends stay open here until the session is gone.
        self._ends: list[int] = []

    def open(self, workers: int) -> Any:
        """Start the processes; return Disco's session."""
        with _starting(self):
            return get_global_func("runtime.disco.SessionProcess")(
                workers, 1, "kvctl.distributed.create_process_pool", str(self.token)
            )

    def ended(self) -> int | None:
        """Return a worker that must not be sent anything: none, since pipes take it."""
        return None

    def may_end(self, session: Any) -> bool:
        """Return whether Disco's session can be destroyed, also behind a death."""
        return True

    def start(self, number: int, workers: int, groups: int) -> tvm_ffi.Shape:
        """Start a worker; return the ends of its pipes that Disco reads and writes."""
        from_worker, worker_writes = os.pipe()
        worker_reads, to_worker = os.pipe()
        _widen(to_worker)
        (ours, theirs), (steps, their_steps) = socket.socketpair(), socket.socketpair()
        passed = (worker_reads, worker_writes, their_steps.fileno(), theirs.fileno())
        arguments = [number, workers, groups, *passed, self.token]
        self._processes[number] = subprocess.Popen(
            [sys.executable, "-m", "kvctl.distributed.worker", *map(str, arguments)],
            pass_fds=passed,
            env=self._environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        their_steps.close()
        self._ends += [*passed[:2], from_worker, to_worker]
        self.ports[number], self.steps[number] = Port(ours), Port(steps)
        return tvm_ffi.Shape((from_worker, to_worker))

    def pid(self, number: int) -> int | None:
        """Return the process of a worker."""
        process = self._processes.get(number)
        return None if process is None else process.pid

    def how_it_ended(self, number: int) -> str:
        """Say how a worker's process, whose socket has ended, ended."""
        process = self._processes.get(number)
        if process is None:
            return "has ended"
        try:
            status = process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        if status >= 0:
            return f"has ended with exit status {status}"
        with contextlib.suppress(ValueError):
            return f"was ended by signal {-status} ({signal.Signals(-status).name})"
        return f"was ended by signal {-status}"

    def kill(self) -> None:
        """End every worker at once, a stopped one too."""
        for process in self._processes.values():
            process.kill()

    def reap(self, seconds: float) -> None:
        """Wait for the processes to end, and kill those that have not after `seconds`."""
        for process in self._processes.values():
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close_copies(self) -> None:
        """Close a fork's copies of sockets and pipes, so that these end with the parent's."""
        for port in (*self.ports.values(), *self.steps.values()):
            port.close()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close the pipes: Disco's session, which wrote to them, is gone."""
        for end in self._ends:
            os.close(end)
        self._ends.clear()


def _widen(pipe: int) -> None:
    """Make a pipe hold a long prompt, so that a dead worker cannot block the controller."""
    import fcntl

    with contextlib.suppress(OSError):  # a system's limit
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, PIPE_BYTES)


@contextlib.contextmanager
def _starting(processes: Processes) -> Any:
    _STARTING[str(processes.token)] = processes
    try:
        yield
    finally:
        del _STARTING[str(processes.token)]


def _create_process_pool(workers: int, groups: int, token: str) -> Any:
    processes = _STARTING[token]

    def pool(number: int) -> Any:
        if number > 0:
            return processes.start(number, workers, groups)
        processes.close_pipes()  # the last thing that the session's destructor does
        return None

    return tvm_ffi.convert(pool)


register_global_func("kvctl.distributed.create_process_pool", _create_process_pool)
