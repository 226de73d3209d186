"""The process of a worker: ``python -m kvctl.distributed.worker``; a session starts it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from threading import Thread

from tvm_ffi import get_global_func

from . import collectives
from .messages.wire import ANY_BYTES, Port
from .place import STEPS, WORKERS
from .worker_state import Worker


def main(arguments: list[str]) -> None:
    """Be a worker until the session ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    collectives.load_disco()
    number, workers, groups, read_fd, write_fd, steps_fd, port_fd, token = map(int, arguments)
    port = Port(socket.socket(fileno=port_fd))
    worker = WORKERS[token] = Worker(number, port, device_id=number)
    STEPS[token] = Port(socket.socket(fileno=steps_fd), ANY_BYTES)
    Thread(target=worker.watch, daemon=True).start()
    get_global_func("runtime.disco.WorkerProcess")(number, workers, groups, read_fd, write_fd)
    os._exit(0)  # the watching thread and OpenMP's need no farewell


if __name__ == "__main__":
    main(sys.argv[1:])
