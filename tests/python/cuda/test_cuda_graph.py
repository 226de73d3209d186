"""Attention recorded in a CUDA graph: replayed after later steps it does those."""

from __future__ import annotations

import os

import numpy as np
import pytest

from devices import KVCTL_CUDA_LIBRARY, fetch, require
from kvctl import Mask, PagedKVCache

QO_HEADS, KV_HEADS, DIM, ROWS = 8, 2, 128, 6

pytestmark = pytest.mark.cuda


@pytest.fixture
def torch():
    require("cuda")
    if os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs a GPU: the emulation has no graphs")
    return pytest.importorskip("torch")


def make_cache(torch, length):
    cache = PagedKVCache.create(
        num_layers=2,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=8192,
        prefill_chunk_size=4096,
        dtype="float16",
        device="cuda",
    )
    cache.add_sequence(0)
    torch.manual_seed(1)
    qkv = torch.randn(length, QO_HEADS + 2 * KV_HEADS, DIM, dtype=torch.float16, device="cuda")
    with cache.forward([0], [length]):
        for layer in range(2):
            cache.attention(layer, qkv)
    return cache


def test_replayed_attention_does_the_present_step(torch):
    import tvm_ffi

    cache, plain = (make_cache(torch, 3000) for _ in range(2))
    shape = (ROWS, QO_HEADS + 2 * KV_HEADS, DIM)
    qkv = torch.empty(shape, dtype=torch.float16, device="cuda")
    outs = [torch.empty(ROWS, QO_HEADS, DIM, dtype=torch.float16, device="cuda") for _ in range(2)]
    mask = Mask.tree([-1, 0, 0, 1, 1, 2])

    def attend():
        for layer in range(2):
            cache.attention(layer, qkv, outs[layer])

    graph = torch.cuda.CUDAGraph()
    cache.begin_forward([0], [ROWS], mask=mask)
    attend()  # allocates what it needs
    torch.cuda.synchronize()
    with tvm_ffi.use_torch_stream(torch.cuda.graph(graph)):
        attend()
    cache.abort()
    for step in range(3):
        values = torch.randn(shape, dtype=torch.float16, device="cuda")
        qkv.copy_(values)
        for out in outs:
            out.fill_(float("nan"))
        cache.begin_forward([0], [ROWS], mask=mask)
        graph.replay()
        torch.cuda.synchronize()
        cache.end_forward()
        cache.commit([0], [[0, 2, 5]])
        with plain.forward([0], [ROWS], mask=mask):
            wanted = [plain.attention(layer, values) for layer in range(2)]
            wanted = [fetch(want) for want in wanted]
        plain.commit([0], [[0, 2, 5]])
        for got, want in zip(outs, wanted, strict=True):
            np.testing.assert_array_equal(got.float().cpu().numpy(), want, err_msg=str(step))
    assert cache.sequence_length(0) == 3009


def test_a_step_cannot_begin_while_its_stream_is_captured(torch):
    import tvm_ffi

    cache = make_cache(torch, 20)
    graph = torch.cuda.CUDAGraph()
    with (
        tvm_ffi.use_torch_stream(torch.cuda.graph(graph)),
        pytest.raises(RuntimeError, match="cannot begin while its stream is captured"),
    ):
        cache.begin_forward([0], [1])
    assert cache.sequence_length(0) == 20
