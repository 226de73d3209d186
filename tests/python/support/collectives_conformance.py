"""What Disco's collectives do over every library, between threads of this process."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi
from tvm_ffi import Shape, get_global_func

from kvctl._ffi.convert import to_tensor
from kvctl.distributed.messages.program import to_array

SUM, PROD, MIN, MAX, AVERAGE = range(5)


def on_host(tensor):
    """A worker's tensor as an array of its own."""
    if tensor.device.type == "cpu":
        return to_array(tensor).copy()
    import tvm

    return tvm.runtime.from_dlpack(tensor).numpy()


class Workers:
    """A session of threads, with tensors that every worker has its own of."""

    def __init__(self, library, workers, groups=1, devices=None):
        self.library = library
        self.workers = workers
        self.session = get_global_func("runtime.disco.SessionThreaded")(workers, groups)
        devices = Shape(devices or [0] * workers)
        get_global_func("runtime.disco.SessionInitCCL")(self.session, library, devices)

    def call(self, name, *args):
        function = get_global_func("runtime.disco.SessionGetGlobalFunc")(
            self.session, f"runtime.disco.{name}"
        )
        return get_global_func("runtime.disco.SessionCallPacked")(
            self.session, 0, 0, function, *args
        )

    def tensor(self, values):
        """Worker i has values[i]."""
        shape, dtype = Shape(values[0].shape), tvm_ffi.dtype(values[0].dtype.name)
        made = self.call("empty", shape, dtype, None, False, False)
        for worker, value in enumerate(values):
            get_global_func("runtime.disco.DRefDebugCopyFrom")(made, worker, to_tensor(value))
        return made

    def values(self, made):
        get = get_global_func("runtime.disco.DRefDebugGetFromRemote")
        return [on_host(get(made, worker)) for worker in range(self.workers)]


def on_workers(workers, tensor, function):
    """Call a function on every worker, with its tensor; return what each returned, or raised."""
    said = {}
    rank = get_global_func("runtime.disco.worker_rank")

    @tvm_ffi.register_global_func("runtime.disco.kvctl_test_on_workers", override=True)
    def act(one):
        try:
            said[rank()] = function(rank(), one)
        except Exception as error:
            said[rank()] = error

    workers.call("kvctl_test_on_workers", tensor)
    workers.values(tensor)  # waits for all
    return [said[worker] for worker in range(workers.workers)]


def numbers(workers, *shape, dtype="float32"):
    rng = np.random.default_rng(7)
    return [rng.integers(1, 5, shape).astype(dtype) for _ in range(workers)]


class CollectivesConformance:
    """Tests of `four`, four workers in two groups."""

    @pytest.mark.parametrize("kind", [SUM, PROD, MIN, MAX, AVERAGE])
    def test_allreduce(self, four, kind):
        sent = numbers(4, 3, 7)
        got = four.tensor(numbers(4, 3, 7))
        four.call("allreduce", four.tensor(sent), Shape([kind]), False, got)
        reduce = [np.sum, np.prod, np.min, np.max, np.mean][kind]
        for value in four.values(got):
            np.testing.assert_array_equal(value, reduce(np.stack(sent), axis=0))

    @pytest.mark.parametrize(
        "dtype", ["float16", ml_dtypes.bfloat16, "float64", "int32", "int64", "uint8"]
    )
    def test_allreduce_of_a_type_in_place(self, four, dtype):
        sent = numbers(4, 5, dtype=dtype)
        both = four.tensor(sent)
        four.call("allreduce", both, Shape([SUM]), False, both)
        for value in four.values(both):
            np.testing.assert_array_equal(value, sum(sent))

    def test_every_worker_has_the_same_bits(self, four):
        rng = np.random.default_rng(1)
        both = four.tensor([rng.standard_normal(1000).astype("float32") for _ in range(4)])
        four.call("allreduce", both, Shape([SUM]), False, both)
        first, *others = four.values(both)
        for value in others:
            np.testing.assert_array_equal(value, first)

    def test_a_group_is_apart(self, four):
        sent = numbers(4, 6)
        got = four.tensor(numbers(4, 6))
        four.call("allreduce", four.tensor(sent), Shape([SUM]), True, got)
        low, _, high, _ = four.values(got)
        np.testing.assert_array_equal(low, sent[0] + sent[1])
        np.testing.assert_array_equal(high, sent[2] + sent[3])

    def test_allgather_gather_scatter_and_broadcast(self, four):
        sent = numbers(4, 2, 3)
        whole = four.tensor(numbers(4, 4, 2, 3))
        part = four.tensor(sent)
        four.call("allgather", part, False, whole)
        for value in four.values(whole):
            np.testing.assert_array_equal(value, np.stack(sent))

        gathered = four.tensor([np.zeros((4, 2, 3), "float32")] * 4)
        four.call("gather_to_worker0", part, False, gathered)
        np.testing.assert_array_equal(four.values(gathered)[0], np.stack(sent))

        back = four.tensor([np.zeros((2, 3), "float32")] * 4)
        four.call("scatter_from_worker0", gathered, False, back)
        np.testing.assert_array_equal(four.values(back), np.stack(sent))

        four.call("broadcast_from_worker0", part, False, back)
        for value in four.values(back):
            np.testing.assert_array_equal(value, sent[0])

    def test_a_message_to_the_next_group(self, four):
        sent = numbers(4, 9)
        buffer = four.tensor(sent)
        send, receive = f"{four.library}.send_to_next_group", f"{four.library}.recv_from_prev_group"
        function = get_global_func("runtime.disco.worker_rank")

        @tvm_ffi.register_global_func("runtime.disco.kvctl_test_next_group", override=True)
        def pass_on(tensor):
            name = send if function() < 2 else receive
            get_global_func(f"runtime.disco.{name}")(tensor)

        four.call("kvctl_test_next_group", buffer)
        first, second, third, fourth = four.values(buffer)
        np.testing.assert_array_equal(third, first)
        np.testing.assert_array_equal(fourth, second)
        np.testing.assert_array_equal([first, second], sent[:2])

    def test_mistakes(self, four):
        said = []

        @tvm_ffi.register_global_func("runtime.disco.kvctl_test_mistakes", override=True)
        def make(tensor, other):
            functions = {
                "allreduce": (tensor, 9, False, tensor),
                "allgather": (tensor, False, tensor),
                "send_to_worker": (tensor, 7),
                "recv_from_worker": (tensor, -1),
            }
            for name, args in functions.items():
                try:
                    get_global_func(f"runtime.disco.{four.library}.{name}")(*args)
                except (ValueError, IndexError) as error:
                    said.append(str(error))

        four.call("kvctl_test_mistakes", four.tensor(numbers(4, 2)), four.tensor(numbers(4, 3)))
        get_global_func("runtime.disco.SessionSyncWorker")(four.session, 0)
        for _ in range(4):
            four.values(four.tensor(numbers(4, 1)))
        text = "\n".join(said)
        for part in ("a reduction is 0 to 4, got 9", "4 x 8 bytes, and holds 8", "to worker 7"):
            assert part in text
