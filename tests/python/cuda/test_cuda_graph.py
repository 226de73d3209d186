"""Attention recorded in a CUDA graph: replayed after later steps it does those.

On a GPU with torch's graphs. Under the emulation a capture records launches with their arguments,
which is what a graph keeps of them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import KVCTL_CUDA_LIBRARY, fetch, poison, put, require
from kvctl import Mask, PagedKVCache

QO_HEADS, KV_HEADS, DIM, ROWS = 8, 2, 128, 6

pytestmark = pytest.mark.cuda


@pytest.fixture
def torch():
    require("cuda")
    if os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs a GPU: torch knows nothing of the emulated one")
    return pytest.importorskip("torch")


class EmulatedGraph:
    """The emulation's counterpart of torch.cuda.CUDAGraph."""

    @contextmanager
    def capture(self):
        tvm_ffi.get_global_func("emulate.begin_capture")()
        try:
            yield
        finally:
            self.number = tvm_ffi.get_global_func("emulate.end_capture")()

    def replay(self):
        tvm_ffi.get_global_func("emulate.replay")(self.number)


@pytest.fixture
def graph():
    require("cuda")
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation's graphs")
    return EmulatedGraph()


def make_cache(length, **changes):
    options = {"num_layers": 2, "max_total_tokens": 8192, "prefill_chunk_size": 4096} | changes
    cache = PagedKVCache.create(
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype="float16",
        device="cuda",
        **options,
    )
    cache.add_sequence(0)
    rng = np.random.default_rng(1)
    qkv = rng.standard_normal((length, QO_HEADS + 2 * KV_HEADS, DIM))
    with cache.forward([0], [length]):
        for layer in range(options["num_layers"]):
            cache.attention(layer, put(qkv, "cuda", "float16"))
    return cache


def attend_all(cache, qkv, outs):
    for layer, out in enumerate(outs):
        cache.attention(layer, qkv, out)


def check_replays(cache, plain, graph, qkv, outs, mask, write, rounds=3):
    """Replay over steps of a mask for each layer, beside a cache that attends plainly."""
    rng = np.random.default_rng(2)
    for step in range(rounds):
        values = rng.standard_normal((ROWS, QO_HEADS + 2 * KV_HEADS, DIM)).astype(np.float16)
        write(qkv, values)
        cache.begin_forward([0], [ROWS], mask=mask(step))
        graph.replay()
        got = [fetch(out) for out in outs]
        cache.end_forward()
        cache.commit([0], [[0, 2, 5]])
        wanted = [poison((ROWS, QO_HEADS, DIM), "cuda", "float16") for _ in outs]
        with plain.forward([0], [ROWS], mask=mask(step)):
            attend_all(plain, put(values, "cuda"), wanted)
        plain.commit([0], [[0, 2, 5]])
        for one, want in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, fetch(want), err_msg=str(step))


def overwrite(tensor, values):
    tensor.copyfrom(values)


def test_replayed_launches_do_the_present_step(graph):
    cache, plain = (make_cache(300) for _ in range(2))
    qkv = put(np.zeros((ROWS, QO_HEADS + 2 * KV_HEADS, DIM)), "cuda", "float16")
    outs = [poison((ROWS, QO_HEADS, DIM), "cuda", "float16") for _ in range(2)]
    tree = Mask.tree([-1, 0, 0, 1, 1, 2])
    cache.begin_forward([0], [ROWS], mask=tree)
    with graph.capture():
        attend_all(cache, qkv, outs)
    cache.abort()
    check_replays(cache, plain, graph, qkv, outs, lambda _: tree, overwrite)
    assert cache.sequence_length(0) == 309


def test_a_first_attention_may_be_captured_and_q_may_need_a_copy(graph):
    """Nothing is allocated and no kernel loaded in a capture: the emulation would refuse either."""
    cache = PagedKVCache.create(
        num_layers=1,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=512,
        dtype="bfloat16",
        device="cuda",
        rope=kvctl.Rope(),
    )
    cache.add_sequence(0)
    qkv = put(np.ones((2, QO_HEADS + 2 * KV_HEADS, DIM)), "cuda", "float32")
    out = poison((2, QO_HEADS, DIM), "cuda", "float32")
    cache.begin_forward([0], [2])
    with graph.capture():
        cache.attention(0, qkv, out)
    assert np.isnan(fetch(out)).all()
    graph.replay()
    cache.end_forward()
    np.testing.assert_allclose(fetch(out), 1, atol=1e-2)


def test_a_plan_that_graphs_read_does_not_move(graph):
    cache = make_cache(40, num_layers=1, max_total_tokens=4096, prefill_chunk_size=2400)
    qkv = put(np.zeros((ROWS, QO_HEADS + 2 * KV_HEADS, DIM)), "cuda", "float16")
    outs = [poison((ROWS, QO_HEADS, DIM), "cuda", "float16")]
    cache.begin_forward([0], [ROWS])
    with graph.capture():
        attend_all(cache, qkv, outs)
    cache.abort()
    large = Mask.full(np.tril(np.ones((2400, 2440), bool), 40) & (np.arange(2440) % 2 == 0))
    before = cache.sequence_length(0)
    with pytest.raises(RuntimeError, match=r"recorded graphs read it where it is.*forget_graphs"):
        cache.begin_forward([0], [2400], mask=large)
    assert not cache.in_forward
    assert cache.sequence_length(0) == before
    cache.begin_forward([0], [ROWS])  # as before
    graph.replay()
    cache.abort()
    assert np.isfinite(fetch(outs[0])).all()
    cache.forget_graphs()
    cache.begin_forward([0], [2400], mask=large)
    cache.abort()


def test_sums_of_a_call_are_not_captured_since_a_later_step_has_more_keys(graph):
    cache = make_cache(20, num_layers=1)
    qkv = put(np.zeros((1, QO_HEADS + 2 * KV_HEADS, DIM)), "cuda", "float16")
    out = poison((1, QO_HEADS, DIM), "cuda", "float16")
    lse = put(np.zeros((1, QO_HEADS), np.float32), "cuda")
    mass = put(np.zeros((21, KV_HEADS), np.float32), "cuda")
    cache.begin_forward([0], [1])
    with graph.capture(), pytest.raises(RuntimeError, match="mass has a row for each key"):
        cache.attention(0, qkv, out, lse=lse, mass=mass)
    cache.attention(0, qkv, out, lse=lse, mass=mass)
    cache.end_forward()
    np.testing.assert_allclose(fetch(mass).sum(axis=0), QO_HEADS // KV_HEADS, rtol=1e-2)


def test_a_step_cannot_begin_in_an_emulated_capture(graph):
    cache = make_cache(20)
    with graph.capture(), pytest.raises(RuntimeError, match="cannot begin while its stream"):
        cache.begin_forward([0], [1])
    assert cache.sequence_length(0) == 20


def test_replayed_attention_in_torch_s_graph(torch):
    cache, plain = (make_cache(3000) for _ in range(2))
    shape = (ROWS, QO_HEADS + 2 * KV_HEADS, DIM)
    qkv = torch.empty(shape, dtype=torch.float16, device="cuda")
    outs = [torch.empty(ROWS, QO_HEADS, DIM, dtype=torch.float16, device="cuda") for _ in range(2)]
    tree = Mask.tree([-1, 0, 0, 1, 1, 2])
    graph = torch.cuda.CUDAGraph()
    cache.begin_forward([0], [ROWS], mask=tree)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):  # on a stream of torch's own
        attend_all(cache, qkv, outs)
    cache.abort()

    def write(tensor, values):
        tensor.copy_(torch.from_numpy(values))

    check_replays(cache, plain, graph, qkv, outs, lambda _: tree, write)
    assert cache.sequence_length(0) == 3009


def test_a_step_cannot_begin_in_a_capture_of_torch(torch):
    cache = make_cache(20)
    graph = torch.cuda.CUDAGraph()
    kept = torch.zeros(1, device="cuda")
    with torch.cuda.graph(graph):
        kept += 1  # an empty graph warns
        with pytest.raises(RuntimeError, match="cannot begin while its stream is captured"):
            cache.begin_forward([0], [1])
    assert cache.sequence_length(0) == 20
