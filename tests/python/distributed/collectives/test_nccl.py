"""Collectives over NCCL: on four GPUs, or over a stand-in of NCCL's on an emulated device."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi
from tvm_ffi import Shape, get_global_func

from collectives_conformance import (
    AVERAGE,
    MAX,
    MIN,
    PROD,
    SUM,
    CollectivesConformance,
    Workers,
    on_workers,
)
from devices import KVCTL_CUDA_LIBRARY, require
from kvctl._ffi.find_nccl import NCCL_VARIABLE, is_there, nccl_path
from kvctl.distributed import Session, WorkerError, collectives

pytestmark = pytest.mark.cuda
UNHANDLED_SYSTEM_ERROR = 2


def exists(device):
    """Return whether TVM finds a CUDA device."""
    return bool(get_global_func("runtime.GetDeviceAttr")(2, device, 0))


@pytest.fixture(scope="module")
def nccl():
    """Skip where there is no device or no NCCL, and say so."""
    if "nccl" not in collectives.available():
        pytest.skip("needs collectives over NCCL: build without -DKVCTL_DISTRIBUTED=OFF")
    require("cuda")
    if not is_there(nccl_path()):
        pytest.skip(f"needs {nccl_path()}: pip install nvidia-nccl-cu13")
    collectives.load("nccl")


@pytest.fixture(scope="module")
def four(nccl):
    if not os.environ.get(KVCTL_CUDA_LIBRARY) and not all(map(exists, range(4))):
        pytest.skip("needs four CUDA devices: NCCL joins no device with itself")
    return Workers("nccl", 4, groups=2, devices=range(4))


class TestNccl(CollectivesConformance):
    pass


@pytest.fixture
def fake(four):
    """The stand-in, which notes calls and can make one fail."""
    if "fake_nccl" not in os.environ.get(NCCL_VARIABLE, ""):
        pytest.skip("needs the stand-in for NCCL, whose calls are noted")
    library = ctypes.CDLL(os.environ[NCCL_VARIABLE])
    library.fake_nccl_take_notes.restype = ctypes.c_char_p
    library.fake_nccl_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.fake_nccl_take_notes()
    return library


def notes(fake):
    return sorted(fake.fake_nccl_take_notes().decode().splitlines())


def ones(workers, *shape, dtype="float32"):
    return workers.tensor([np.ones(shape, dtype)] * workers.workers)


@pytest.mark.parametrize(("kind", "op"), [(SUM, 0), (PROD, 1), (MAX, 2), (MIN, 3), (AVERAGE, 4)])
def test_operations_have_the_numbers_of_nccl(four, fake, kind, op):
    sent, got = ones(four, 3, 5), ones(four, 3, 5)
    four.call("allreduce", sent, Shape([kind]), False, got)
    four.values(got)
    assert notes(fake) == [
        f"ncclAllReduce rank={rank} count=15 dtype=7 op={op} in_place=0 stream=0"
        for rank in range(4)
    ]


TYPES = ["int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize(("number", "dtype"), list(enumerate([*TYPES, "bfloat16"])))
def test_types_have_the_numbers_of_nccl(four, fake, number, dtype):
    both = ones(four, 2, dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    four.call("allreduce", both, Shape([SUM]), False, both)
    four.values(both)
    assert f"ncclAllReduce rank=3 count=2 dtype={number} op=0 in_place=1 stream=0" in notes(fake)


def test_a_type_that_nccl_has_not(four, fake):
    errors = on_workers(
        four,
        ones(four, 2, dtype="int16"),
        lambda _, one: get_global_func("runtime.disco.nccl.allreduce")(one, SUM, False, one),
    )
    assert all(isinstance(error, TypeError) and "16 bits" in str(error) for error in errors)
    assert notes(fake) == []


def test_bytes_peers_and_groups_of_the_other_calls(four, fake):
    part, whole = ones(four, 2, 3), ones(four, 4, 2, 3)
    four.call("allgather", part, False, whole)
    four.values(whole)
    assert notes(fake) == [f"ncclAllGather rank={i} count=24 dtype=0 stream=0" for i in range(4)]
    four.call("broadcast_from_worker0", part, False, part)
    four.values(part)
    assert notes(fake) == [
        f"ncclBroadcast rank={i} count=24 dtype=0 root=0 null=0 stream=0" for i in range(4)
    ]
    four.call("scatter_from_worker0", whole, False, part)
    four.values(part)
    assert notes(fake) == [
        *(f"ncclRecv rank={i} count=24 dtype=0 peer=0 group=1 stream=0" for i in range(4)),
        *(f"ncclSend rank=0 count=24 dtype=0 peer={i} group=1 stream=0" for i in range(4)),
    ]
    four.call("gather_to_worker0", part, False, whole)
    four.values(whole)
    assert notes(fake) == [
        *(f"ncclRecv rank=0 count=24 dtype=0 peer={i} group=1 stream=0" for i in range(4)),
        *(f"ncclSend rank={i} count=24 dtype=0 peer=0 group=1 stream=0" for i in range(4)),
    ]


def test_work_is_queued_on_the_stream_of_tvm(four, fake):
    def reduce(rank, one):
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", rank), 4096 + rank):
            get_global_func("runtime.disco.nccl.allreduce")(one, SUM, False, one)

    assert on_workers(four, ones(four, 1), reduce) == [None] * 4
    streams = [note.rpartition("stream=")[2] for note in notes(fake)]
    assert streams == ["4096", "4097", "4098", "4099"]


@pytest.mark.parametrize("call", ["ncclAllReduce", "async"])
def test_an_error_names_the_worker_and_what_nccl_says(four, fake, call):
    def reduce(rank, one):
        if rank == 1:
            # synchronize asks the communicator of all, and allreduce is within the group.
            fake.fake_nccl_fail(call.encode(), int(call == "async"), UNHANDLED_SYSTEM_ERROR)
            get_global_func("runtime.disco.nccl.allreduce")(one, SUM, True, one)
            get_global_func("runtime.disco.nccl.synchronize")()

    workers = Workers("nccl", 2, groups=2, devices=range(2))  # each alone in its group, of rank 0
    first, error = on_workers(workers, ones(workers, 1), reduce)
    assert first is None and isinstance(error, RuntimeError)
    what = "ncclAllReduce" if call == "ncclAllReduce" else "a collective of NCCL"
    assert str(error) == (
        f"worker 1: {what} failed: unhandled system error (no route to a fake host)"
    )


def test_every_group_has_a_unique_id_of_its_first_worker(four, fake):
    workers = Workers("nccl", 4, groups=2, devices=range(4))
    workers.values(ones(workers, 1))
    said = notes(fake)
    assert said.count("ncclGetUniqueId") == 3
    joined = {}
    for note in said:
        if note.startswith("ncclCommInitRank"):
            _, made, rank, size = note.split()
            joined.setdefault(made, []).append(f"{rank} {size}")
    assert sorted(joined.values()) == [
        ["rank=0 size=2", "rank=1 size=2"],
        ["rank=0 size=2", "rank=1 size=2"],
        [f"rank={rank} size=4" for rank in range(4)],
    ]


def test_a_wait_ends_when_the_connections_are_closed(four, fake):
    """By another thread, as the session does it when a worker has died."""
    values, said = {}, []

    def exchange(key, value):
        if value is None:
            return values[key]
        values[key] = bytes(value)
        return None

    def wait(rank, one):
        if rank > 0:
            return
        join = get_global_func("runtime.disco.nccl.join")
        close = join(tvm_ffi.convert(exchange), "meeting", "127.0.0.1", 1000, 0)
        threading.Timer(0.1, close).start()
        for name, arguments in (("allreduce", (one, SUM, False, one)), ("synchronize", ())):
            try:
                get_global_func(f"runtime.disco.nccl.{name}")(*arguments)
            except RuntimeError as error:
                said.append(str(error))

    workers = Workers("nccl", 2, devices=range(2))
    on_workers(workers, ones(workers, 1), wait)
    assert "worker 0: ncclAllReduce failed: remote process exited" in said[0]
    assert said[1] == "worker 0: its connections over NCCL are closed"
    ((key, unique),) = values.items()
    assert key == "all/nccl_id" and len(unique) == 128


def test_a_library_that_is_none(fake):
    with pytest.raises(FileNotFoundError, match="NCCL"):
        get_global_func("runtime.disco.nccl.load_library")("/nowhere/libnccl.so.2")


def test_processes_join_and_the_death_of_one(four, fake):
    """The unique id goes through the session, and each process has a device of its own."""
    with Session(2, library="nccl", threads=1) as session:
        assert "ncclCommInitRank id=" in "".join(notes(fake))
        session.join()  # anew, as behind a step that failed
        said = notes(fake)
        assert "ncclCommAbort rank=0" in said and "ncclGetUniqueId" in said
        os.kill(session._processes.pid(1), signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"worker 1 .* was ended by signal 9"):
            session.join()
        assert "ncclCommAbort rank=0" in notes(fake)
