"""Workers on several machines: one on each, over Disco's socket session.

The controller listens. On every other machine a person, or a job scheduler, starts
``python -m kvctl.distributed.host ADDRESS PORT``, with the controller's address; it waits for it.

Nobody has to prove who they are: the ports must not be reachable from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tvm_ffi import get_global_func, register_global_func

from .messages.wire import ANY_BYTES, VALUE, Port

#: Seconds that the controller waits for the other machines.
_ARRIVAL_SECONDS = 120.0
#: And for the first message of a connection for steps.
_GREETING_SECONDS = 5.0
LOCAL_SESSION = "runtime.disco.create_socket_session_local_workers"


class Hosts:
    """The workers of other machines, with the interface of processes of this one."""

    def __init__(self, token: int, hosts: Sequence[str], port: int) -> None:
        self.token = token
        self.ports: dict[int, Port] = {}
        self.steps: dict[int, Port] = {}
        self._hosts = list(hosts)
        self._port = port
        self._broken = False

    def open(self, workers: int) -> Any:
        """Wait for the other machines; return Disco's session.

        Raises
        ------
        TimeoutError
            If one does not come.
        """
        address = self._hosts[0]
        with socket.create_server((address, self._port)) as server:
            server.settimeout(_ARRIVAL_SECONDS)
            for _ in range(1, workers):
                end, host = _accept(server)
                missing = [i for i in range(1, workers) if i not in self.ports]
                number = next((i for i in missing if self._hosts[i] == host), None)
                if number is None:
                    end.close()
                    raise ValueError(f"{host} is none of the hosts {self._hosts[1:]}")
                self.ports[number] = Port(end)
            return self._start_disco(workers, server)

    def _start_disco(self, workers: int, server: socket.socket) -> Any:
        address = self._hosts[0]
        with local_workers(one_worker):
            from threading import Thread

            made: list[Any] = []

            def listen() -> None:
                session = get_global_func("runtime.disco.SocketSession")
                made.append(session(workers, 1, 1, address, self._port + 1))

            thread = Thread(target=listen, daemon=True)
            thread.start()
            _wait_until_it_listens(self._port + 1)  # a machine that calls too early gives up
            # Disco numbers machines as they come: one is told after the other.
            for number in range(1, workers):
                told = {"token": self.token, "number": number, "port": self._port + 1}
                self.ports[number].send(VALUE, 0, json.dumps(told).encode())
                self.steps[number] = self._accept_steps(server, number)
                self.ports[number].socket.settimeout(_ARRIVAL_SECONDS)
                self.ports[number].receive_one()  # its local session is there
                self.ports[number].socket.settimeout(None)
            thread.join()
        return made.pop()

    def _accept_steps(self, server: socket.socket, number: int) -> Port:
        """Return the connection for steps of a machine that has just been told its number."""
        while True:
            end, host = _accept(server)
            steps = Port(end)
            end.settimeout(_GREETING_SECONDS)
            with contextlib.suppress(EOFError, OSError):
                if host == self._hosts[number] and steps.receive_one().number == self.token:
                    end.settimeout(None)
                    return steps
            end.close()  # somebody else's

    def ended(self) -> int | None:
        """Return a worker that must not be sent anything.

        A message to a machine that is gone throws in a destructor of Disco's, and ends this
        process. Between this look and the message, microseconds remain.
        """
        for number, port in self.ports.items():
            with contextlib.suppress(BlockingIOError):
                try:
                    data = port.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                except ConnectionError:
                    data = b""
                if not data:
                    return number
        return None

    def pid(self, number: int) -> str | None:
        """Return what names a worker beside its number: its machine."""
        return self._hosts[number]

    def how_it_ended(self, number: int) -> str:
        """Say what became of a worker whose socket has ended."""
        self._broken = True
        return "has ended"

    def kill(self) -> None:
        """End the workers: they end with their sockets."""
        self._broken = True
        for port in self.ports.values():
            with contextlib.suppress(OSError):
                port.socket.shutdown(socket.SHUT_RDWR)

    def reap(self, seconds: float) -> None:
        """Do nothing: the processes are of other machines."""

    def close_copies(self) -> None:
        """Close a fork's copies of the sockets."""
        for port in (*self.ports.values(), *self.steps.values()):
            port.close()

    def may_end(self, session: Any) -> bool:
        """Return whether Disco's session, and what it has handed out, can be destroyed.

        A destructor sends a farewell to every machine, and ends this process if one is gone: then
        the session, which has nothing but sockets and an idle thread, stays.
        """
        if self._broken:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        return not self._broken


@contextlib.contextmanager
def local_workers(make: Any) -> Iterator[None]:
    """Have Disco's socket session start its local workers with a function, for a while."""
    before = get_global_func(LOCAL_SESSION, allow_missing=True)
    register_global_func(LOCAL_SESSION, make, override=True)
    try:
        yield
    finally:
        if before is not None:  # of tvm's Python package
            register_global_func(LOCAL_SESSION, before, override=True)
        else:
            from tvm_ffi.registry import remove_global_func

            remove_global_func(LOCAL_SESSION)


def one_worker(_: int) -> Any:
    """Return the session of a machine: a thread of its process."""
    return get_global_func("runtime.disco.SessionThreaded")(1, 1)


def _accept(server: socket.socket) -> tuple[socket.socket, str]:
    """Return the next connection, and the address that it comes from."""
    end, (host, _) = server.accept()
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end, host


def _arrive(address: str, port: int) -> socket.socket:
    """Connect with the controller, which may come later."""
    patience = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        try:
            end = socket.create_connection((address, port), timeout=_ARRIVAL_SECONDS)
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return end
        except OSError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.2)


def _wait_until_it_listens(port: int) -> None:
    """Wait for Disco's own server, without a connection that it would take for a machine's."""
    patience = time.monotonic() + _ARRIVAL_SECONDS
    while time.monotonic() < patience:
        for table in ("tcp", "tcp6"):
            path = Path("/proc/self/net") / table
            for line in path.read_text().splitlines()[1:] if path.exists() else ():
                _, here, _, state = line.split()[:4]
                if here.endswith(f":{port:04X}") and state == "0A":
                    return
        time.sleep(0.01)


def follow(address: str, port: int) -> None:
    """Be the worker of this machine until the controller's session ends."""
    import os
    from threading import Thread

    from . import collectives
    from .place import STEPS, WORKERS
    from .worker_state import Worker

    collectives.load_disco()
    end = _arrive(address, port)
    control = Port(end)
    told = json.loads(control.receive_one().payload)
    token = told["token"]
    worker = WORKERS[token] = Worker(told["number"], control, end.getsockname()[0])
    STEPS[token] = Port(_arrive(address, port), ANY_BYTES)
    STEPS[token].send(VALUE, token)

    def local(count: int) -> Any:
        session = one_worker(count)
        control.send(VALUE)
        Thread(target=worker.watch, daemon=True).start()
        return session

    with local_workers(local):
        get_global_func("runtime.disco.RemoteSocketSession")(address, told["port"], 1)
    sys.stdout.flush()
    os._exit(0)
