"""kvctl.cuda.StepGraph: it replays what fits a step, and captures again or refuses what does not.

Under the emulation a recorder of its own stands in for torch's graphs. What asks for ``torch``
needs a GPU, and has never run.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import KVCTL_CUDA_LIBRARY, fetch, poison, put, require
from kvctl import Mask, PagedKVCache
from kvctl.cuda import StepGraph

QO_HEADS, KV_HEADS, DIM, LAYERS = 8, 2, 64, 2
FEW = 4  # new tokens of a sequence: 16 rows for each KV head

pytestmark = pytest.mark.cuda


class EmulatedRecording:
    def __init__(self, number, kept, results):
        self.number, self.kept, self.results = number, kept, results

    def replay(self, inputs, stream):
        for kept, given in zip(self.kept, inputs, strict=True):
            kept.copyfrom(given)
        tvm_ffi.get_global_func("emulate.replay")(self.number)
        return self.results


class EmulatedRecorder:
    def shapes(self, inputs):
        return tuple((tuple(one.shape), str(one.dtype)) for one in inputs)

    def record(self, step, inputs, stream):
        kept = [put(one.numpy(), "cuda") for one in inputs]
        results = poison((kept[0].shape[0], QO_HEADS, DIM), "cuda", "float16")
        tvm_ffi.get_global_func("emulate.begin_capture")()
        try:
            step(*kept, results)
        finally:
            number = tvm_ffi.get_global_func("emulate.end_capture")()
        return EmulatedRecording(number, kept, results)


@pytest.fixture
def emulated():
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation's graphs")


@pytest.fixture
def torch():
    require("cuda")
    if os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs a GPU: torch knows nothing of the emulated one")
    return pytest.importorskip("torch")


def make_cache(lengths=(40, 7), **changes):
    """Return a cache whose sequences have some tokens."""
    options = {"num_layers": LAYERS, "max_total_tokens": 2048, "prefill_chunk_size": 256} | changes
    cache = PagedKVCache.create(
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype="float16",
        device="cuda",
        **options,
    )
    for seq_id, length in enumerate(lengths):
        cache.add_sequence(seq_id)
        with cache.forward([seq_id], [length]):
            attend(cache, put(rows(length, seed=seq_id), "cuda"))
    return cache


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, QO_HEADS + 2 * KV_HEADS, DIM)
    return rng.standard_normal(shape).astype(np.float16)


def attend(cache, qkv, out=None):
    """A model of attention alone; its layers' results overwrite each other."""
    for layer in range(LAYERS):
        result = cache.attention(layer, qkv, out)
    return result


class Pair:
    """A cache whose steps a graph does, and one that attends plainly."""

    def __init__(self, **changes):
        self.cache, self.plain = make_cache(**changes), make_cache(**changes)
        self.graph = StepGraph(partial(attend, self.cache), self.cache, recorder=EmulatedRecorder())
        self.seed = 10

    def check(self, seq_ids, lengths, **options):
        """Run one step on both, and return how many captures there have been."""
        self.seed += 1
        qkv = put(rows(sum(lengths), self.seed), "cuda")
        with self.cache.forward(seq_ids, lengths, **options):
            got = fetch(self.graph(qkv))
        with self.plain.forward(seq_ids, lengths, **options):
            wanted = fetch(attend(self.plain, qkv))
        np.testing.assert_array_equal(got, wanted)
        return self.graph.num_captures


@pytest.mark.usefixtures("emulated")
class TestUnderEmulation:
    def test_one_capture_serves_later_steps_of_other_sequences_lengths_and_masks(self):
        pair = Pair()
        for seq_id in (0, 1, 0, 1):
            assert pair.check([seq_id], [3]) == 1
        tree = Mask.tree([-1, 0, 0])
        assert pair.check([1], [3], mask=tree) == 1
        for cache in (pair.cache, pair.plain):
            cache.commit([1], [[0, 2]])
        assert pair.check([1], [3]) == 1
        assert pair.check([0, 1], [1, 2]) == 1  # as many new tokens
        assert pair.cache.sequence_length(1) == pair.plain.sequence_length(1) == 7 + 3 + 3 + 2 + 5

    def test_masks_may_differ_in_other_layers_than_when_it_was_captured(self):
        pair = Pair(layer_windows=[0, 16])
        assert pair.check([1], [2]) == 1  # the window hides nothing yet
        assert pair.check([0], [2]) == 1

    def test_another_number_of_new_tokens_is_captured_for_itself(self):
        pair = Pair()
        counts = [pair.check([0], [length]) for length in (1, 2, 1, 2, 5, 2)]
        assert counts == [1, 2, 2, 2, 3, 3]

    def test_few_and_many_rows_are_captured_apart(self):
        pair = Pair()
        total = 2 * FEW
        assert pair.check([0, 1], [FEW, FEW]) == 1
        assert pair.check([0, 1], [total - 1, 1]) == 2
        assert pair.check([0, 1], [FEW, FEW]) == 2
        assert pair.check([0], [total]) == 2

    def test_forgotten_graphs_are_captured_again(self):
        pair = Pair()
        assert pair.check([0], [2]) == 1
        pair.cache.forget_graphs()
        assert pair.check([0], [2]) == 2
        assert pair.check([0], [2]) == 2

    def test_a_plan_that_had_to_move_is_captured_again(self):
        """The arena of a small cache grows: what was captured would read freed memory."""
        pair = Pair(max_total_tokens=4096, prefill_chunk_size=1800, lengths=(40,))
        assert pair.check([0], [2]) == 1
        large = Mask.full(np.arange(1842) % 2 == np.arange(1800)[:, None] * 0)
        with pytest.raises(RuntimeError, match="forget_graphs"):
            pair.cache.begin_forward([0], [1800], mask=large)
        pair.cache.forget_graphs()
        pair.cache.begin_forward([0], [1800], mask=large)
        pair.cache.abort()
        assert pair.check([0], [2]) == 2

    def test_the_graph_not_used_for_longest_goes_first(self):
        pair = Pair()
        pair.graph.max_graphs = 2
        counts = [pair.check([0], [length]) for length in (1, 2, 1, 3, 1, 2)]
        assert counts == [1, 2, 2, 3, 3, 4]

    def test_long_steps_are_not_captured(self):
        pair = Pair()
        pair.graph.max_new_tokens = 4
        assert pair.check([0], [5]) == 0
        assert pair.check([0], [4]) == 1

    def test_no_step_in_flight(self):
        pair = Pair()
        with pytest.raises(RuntimeError, match="no step of the graph's cache is in flight"):
            pair.graph(put(rows(1), "cuda"))
        with pair.plain.forward([0], [1]), pytest.raises(RuntimeError, match="no step"):
            pair.graph(put(rows(1), "cuda"))

    def test_a_step_that_attends_over_another_cache_is_refused(self):
        cache, other = make_cache(), make_cache()
        graph = StepGraph(partial(attend, other), cache, recorder=EmulatedRecorder())
        other.begin_forward([0], [1])
        with (
            pytest.raises(RuntimeError, match="no attention over the graph's cache"),
            cache.forward([0], [1]),
        ):
            graph(put(rows(1), "cuda"))
        assert cache.sequence_length(0) == 40
        assert graph.num_captures == 0

    def test_a_step_that_leaves_layers_to_another_cache_is_refused(self):
        """At every call: a replay would write no K and V in them, and the cache would not know."""
        cache, other = make_cache(), make_cache()

        def step(qkv, out):
            cache.attention(0, qkv, out)
            return other.attention(1, qkv, out)

        graph = StepGraph(step, cache, recorder=EmulatedRecorder())
        other.begin_forward([0], [1])
        for _ in range(2):
            with (
                pytest.raises(RuntimeError, match="captured attention in 1 of 2 layers over"),
                cache.forward([0], [1]),
            ):
                graph(put(rows(1), "cuda"))
        assert cache.sequence_length(0) == 40
        assert graph.num_captures == 0

    @pytest.mark.parametrize(
        ("ids", "lengths"), [([0, 1], [7, 1]), ([0], [3]), ([0, 1], [8, 8])], ids=str
    )
    def test_the_cache_itself_notices_a_graph_that_did_not_fit(self, ids, lengths):
        """Without StepGraph: a recorded call whose grid is not that of the step it runs in."""
        cache, other = make_cache(), make_cache()
        qkv, recorder = put(rows(8), "cuda"), EmulatedRecorder()
        cache.begin_forward([0, 1], [FEW, FEW])
        recording = recorder.record(partial(attend, cache), [qkv], 0)
        recording.replay([qkv], 0)
        cache.end_forward()
        point = cache.checkpoint(0)
        before = fetch(cache.get_kv(0)[0])
        cache.begin_forward(ids, lengths)
        tvm_ffi.get_global_func("emulate.replay")(recording.number)
        cache.abort()
        np.testing.assert_array_equal(fetch(cache.get_kv(0)[0]), before)
        with pytest.raises(RuntimeError, match=r"replayed in a step of another number.*StepGraph"):
            cache.begin_forward([0], [1])
        assert not cache.in_forward
        cache.rollback(0, point)
        with cache.forward([0], [1]):  # said once
            attend(cache, put(rows(1), "cuda"))
        with other.forward([0], [1]):
            attend(other, put(rows(1), "cuda"))

    def test_arguments(self):
        cache = make_cache(())
        make = partial(StepGraph, recorder=EmulatedRecorder())
        with pytest.raises(TypeError, match="step must be callable, got int"):
            make(3, cache)
        with pytest.raises(TypeError, match=r"must be a kvctl\.PagedKVCache, got int"):
            make(attend, 3)
        for name in ("max_new_tokens", "max_graphs"):
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
                make(attend, cache, **{name: 0})


def make_torch_pair(torch):
    """Return a cache, one beside it, and a model with linear layers on either."""
    import kvctl.torch

    cache, plain = make_cache(), make_cache()
    torch.manual_seed(0)
    widths = (QO_HEADS + 2 * KV_HEADS) * DIM, QO_HEADS * DIM
    project = torch.nn.Linear(32, widths[0], dtype=torch.float16, device="cuda")
    attention = kvctl.torch.Attention(0)

    def model(tokens, positions):
        x = torch.nn.functional.one_hot((tokens + positions) % 32, 32).half()
        qkv = project(x).view(1, len(tokens), -1, DIM).transpose(1, 2)
        q, k, v = qkv.split([QO_HEADS, KV_HEADS, KV_HEADS], 1)
        return attention(q, k, v).transpose(1, 2).reshape(len(tokens), -1)

    return cache, plain, model


def test_torch_s_graphs_do_what_the_model_does(torch):
    import kvctl.torch

    cache, plain, model = make_torch_pair(torch)
    graph = StepGraph(model, cache)
    tree = Mask.tree([-1, 0, 0])
    stream = torch.cuda.Stream()
    for step, (ids, lengths) in enumerate([([0], [3]), ([1], [3]), ([0, 1], [2, 1]), ([1], [3])]):
        options = {"mask": tree} if step == 3 else {}
        tokens = torch.arange(3, device="cuda") + step
        with torch.inference_mode():
            with kvctl.torch.forward(cache, ids, lengths, **options) as positions:
                if step == 2:  # on another stream than the step's
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):
                        got = graph(tokens, positions)
                else:
                    got = graph(tokens, positions)
            with kvctl.torch.forward(plain, ids, lengths, **options) as positions:
                wanted = model(tokens, positions)
        torch.cuda.synchronize()
        assert torch.equal(got, wanted), step
    assert graph.num_captures == 1


def test_torch_s_inputs_and_caches_are_checked(torch):
    import kvctl.torch

    cache, plain, model = make_torch_pair(torch)
    graph = StepGraph(model, cache)
    with cache.forward([0], [1]):
        with pytest.raises(TypeError, match="inputs must be tensors, got int"):
            graph(3)
        with (
            kvctl.torch.forward(plain, [0], [1]) as positions,
            pytest.raises(ValueError, match="of another cache"),
        ):
            graph(positions, positions)


def test_a_cache_on_the_cpu_is_refused():
    cache = kvctl.PagedKVCache.create(
        num_layers=1, num_qo_heads=1, num_kv_heads=1, head_dim=8, max_total_tokens=16
    )
    with pytest.raises(NotImplementedError, match="this one is on the CPU"):
        StepGraph(attend, cache)
