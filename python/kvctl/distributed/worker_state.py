"""A worker: what Disco calls in every process, and in a thread of the controller's."""

from __future__ import annotations

import ctypes
import json
import os
import select
from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition
from time import perf_counter
from typing import Any

import tvm_ffi
from tvm_ffi import get_global_func

from .._ffi import errors as errors  # registers the exception types that libkvctl raises
from .._ffi import functions as ffi
from .._ffi.cuda_compiler import prepare_device
from .collectives import load
from .messages.program import Call, Kept, OnFirst, Own, decode, function
from .messages.wire import (
    ALIVE,
    BREAK,
    DONE,
    FAILED,
    JOIN,
    LOAD,
    TIMES,
    VALUE,
    Message,
    Port,
    Waiter,
)

#: What a user's mistake raises: on every worker alike, before the model runs.
USER_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    NotImplementedError,
    FileNotFoundError,
    errors.OutOfPagesError,
)
_HEARTBEAT_SECONDS = 1.0
#: Seconds that a worker waits for the address of another.
_MEETING_SECONDS = 60.0


def kernels_here() -> str:
    """Return which kernels multiply here: those whose sums have an order of their own."""
    return ", ".join([ffi.model.backend(), *ffi.model.get_kernels("bfloat16")])


class DivergedError(Exception):
    """A worker could not follow the others."""


class Worker:
    """One worker of a session: its model, its cache, and its way to report."""

    def __init__(
        self, number: int, port: Port, host: str = "127.0.0.1", *, device_id: int = 0
    ) -> None:
        self.number = number
        self.port = port
        self._host = host  # where the others reach this worker
        self._device_id = device_id  # among the devices of its machine
        self._library = ""  # that connects it with the others
        self.result: Any = None
        self.error: BaseException | None = None
        self.next_call: Call  #: what worker 0 does, without decoding it
        self._handle: Any = None
        self._cache: Any = None
        self._kept: dict[int, Any] = {}
        self._made = 0  # calls of the controller's journal
        self._last = 0  # the number of the last thing begun
        self._reported = Message(DONE, 0, b"")  # of it
        self._close_connections: Callable[[], None] | None = None
        self._values: dict[str, bytes] = {}
        self._arrived = Condition()

    # What steps do: in the calls that Disco makes in other processes, on the caller's thread here.

    def do(self, kind: bytes, payload: bytes) -> None:
        """Do what a message of the controller's asks for."""
        if kind == JOIN:
            self.join(*json.loads(payload))
        elif kind == LOAD:
            self.load(*json.loads(payload))
        else:
            self.execute(payload)

    def join(self, library: str, meeting: str, timeout: int) -> None:
        """Connect with the other workers."""
        load(library)
        self.close_connections()
        join = get_global_func(f"runtime.disco.{library}.join")
        exchange = tvm_ffi.convert(lambda key, value: self._exchange(f"{meeting}/{key}", value))
        self._library = library
        device_id = self._device_id if library == "nccl" else 0
        self._close_connections = join(exchange, meeting, self._host, timeout, device_id)

    def load(
        self,
        directory: str,
        device: str,
        kv_dtype: str,
        options: Sequence[int],
        threads: int,
        kernels: str,
    ) -> None:
        """Load the model, or this worker's shard of it where the last option says so.

        Raises
        ------
        ValueError
            If the model is compiled for whole sums and this worker has other kernels than the
            controller's; as the load of a model raises.
        """
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)  # of this thread's teams
        prepare_device(device)
        sequences, tokens, chunk, page, max_history, max_state_bytes, keep_steps, sharded = options
        self._handle = ffi.runner.load_model(
            directory,
            tvm_ffi.device(device, self._device_id if self._library == "nccl" else 0),
            None,
            sequences,
            tokens,
            chunk,
            page,
            kv_dtype,
            None,  # scales of 8-bit floats
            max_history,
            max_state_bytes,
            bool(keep_steps),
            self.number if sharded else -1,
            None,
        )
        self._check_kernels(kernels)
        self._cache = ffi.runner.get_cache(self._handle)
        self.result = self._handle

    def _check_kernels(self, controllers: str) -> None:
        """Refuse kernels that would sum in another order than one process does."""
        metadata = json.loads(ffi.runner.get_library_metadata(ffi.runner.get_library(self._handle)))
        parallel = metadata.get("kvctl", {}).get("tensor_parallel", {})
        own = kernels_here()
        if parallel.get("sums") == "whole" and own != controllers:
            raise ValueError(
                f"the model is compiled with tensor_parallel_sums whole, so all machines need the "
                f"same kernels; worker {self.number} has {own!r} and the controller "
                f"{controllers!r}. Set KVCTL_ISA to what both can, or compile the model with "
                "tensor_parallel_sums partial"
            )

    def execute(self, program: Any) -> None:
        """Run a program behind its head.

        The head: free pages and tokens of the controller's cache, or -1; and the numbers of the
        calls that have happened there, of which this worker has made the first ones, perhaps.

        Raises
        ------
        DivergedError
            If this worker's cache is not the controller's any more.
        """
        if self.number == 0:  # its cache is the controller's, and its call lies at hand
            self._run(self.next_call)
            self._synchronize()
            return
        (pages, tokens, first, end), calls = decode(program, 4)
        if first < end:
            try:
                for call in calls[max(0, self._made - first) : end - first]:
                    self._run(call)
            except Exception as error:
                raise DivergedError(f"{type(error).__name__}: {error}") from error
            self._made = max(self._made, end)
        if pages >= 0:
            self._check(pages, tokens)
        for call in calls[end - first :]:
            self._run(call)
        self._synchronize()

    def _synchronize(self) -> None:
        """Wait for the device, so that what fails there is reported as this worker's."""
        if self._library == "nccl":
            get_global_func("runtime.disco.nccl.synchronize")()

    def _check(self, pages: int, tokens: int) -> None:
        has = (
            ffi.vm_builtin.attention_kv_cache_get_num_available_pages(self._cache),
            ffi.vm_builtin.attention_kv_cache_get_total_sequence_length(self._cache),
        )
        if has != (pages, tokens):
            raise DivergedError(
                f"its cache has {has[0]} free pages and {has[1]} tokens, the controller's "
                f"{pages} and {tokens}"
            )

    def _run(self, call: Call) -> None:
        if call.name == "forget":
            self._kept.pop(call.args[0].number, None)
            return
        result = function(call.name)(*map(self._resolve, call.args))
        if call.target >= 0:
            self._kept[call.target] = result
        self.result = result

    def forget(self, kept: Kept) -> None:
        """Keep a result no longer."""
        self._kept.pop(kept.number, None)

    def _resolve(self, arg: Any) -> Any:
        if arg is Own.RUNNER:
            return self._handle
        if arg is Own.CACHE:
            return self._cache
        if isinstance(arg, Kept):
            return self._kept[arg.number]
        if isinstance(arg, OnFirst):
            return arg.value
        return arg

    def run(self, number: int, act: Callable[[], None]) -> Message:
        """Do something and return how it went: an exception must not reach Disco's loop."""
        if number <= self._last:  # sent again, behind an interrupt
            return self._reported
        self._last = number
        begun = perf_counter()
        self.result, self.error = None, None
        try:
            act()
        except BaseException as error:
            self.error = error
            mistake = isinstance(error, USER_ERRORS)
            if not mistake:
                self.close_connections()  # the others may wait for this worker
            report = {"kind": type(error).__name__, "message": str(error), "mistake": mistake}
            self._reported = Message(FAILED, number, json.dumps(report).encode())
        else:
            self._reported = Message(DONE, number, TIMES.pack(begun, perf_counter()))
        return self._reported

    def serve(self, steps: Port, spin: float) -> None:
        """Do what the controller asks for until it ends the connection.

        Parameters
        ----------
        steps : Port
            Where messages come from and reports go. A failure is reported to the controller's
            listening thread as well, since the other one may wait for this worker.
        spin : float
            Seconds for which messages are polled before the thread sleeps.
        """
        waiter = Waiter(spin)
        waiter.add(steps.fileno())
        try:
            while True:
                waiter.wait()
                for message in steps.receive():
                    report = self.run(
                        message.number, partial(self.do, message.kind, message.payload)
                    )
                    if report.kind == FAILED:
                        self.port.send(*report)
                    steps.send(*report)
        except (EOFError, OSError):
            return  # the session is closed, or the controller is gone

    def take_result(self) -> Any:
        """Return what the last call returned, and keep it no longer."""
        result, self.result = self.result, None
        return result

    def close_connections(self) -> None:
        """Make collectives raise, here and at the others; any thread."""
        if self._close_connections is not None:
            self._close_connections()

    def leave(self) -> None:
        """Let go of the other workers: the session is closed."""
        self.close_connections()
        self._close_connections = None
        self.port.close()

    # How workers tell each other their addresses.

    def _exchange(self, key: str, value: Any) -> Any:
        if value is not None:
            self.tell(key, bytes(value))
            return None
        with self._arrived:
            if not self._arrived.wait_for(lambda: key in self._values, _MEETING_SECONDS):
                raise RuntimeError(f"no word from a worker for {_MEETING_SECONDS:.0f} seconds")
            return self._values[key]

    def tell(self, key: str, value: bytes) -> None:
        """Hand a value to all workers, through the controller."""
        self.port.send(VALUE, 0, key.encode() + b"\0" + value)

    def learn(self, payload: bytes) -> None:
        """Take a value that another worker, or this one, has handed out."""
        key, _, value = payload.partition(b"\0")
        with self._arrived:
            self._values[key.decode()] = value
            self._arrived.notify_all()

    def watch(self) -> None:
        """Listen to the controller, tell it that this process lives, and end with it."""
        poll = select.poll()
        poll.register(self.port.fileno(), select.POLLIN)
        try:
            while True:
                if poll.poll(_HEARTBEAT_SECONDS * 1000):
                    for message in self.port.receive():
                        if message.kind == VALUE:
                            self.learn(message.payload)
                        elif message.kind == BREAK:
                            self.close_connections()
                else:
                    self.port.send(ALIVE)
        except (EOFError, OSError):
            os._exit(0)  # without a controller nobody needs this process
