"""kvctl.torch on a GPU: the same attention as in plain torch, on torch's current stream.

The kernels' emulation on the CPU cannot stand in here, since torch's tensors would be on no GPU.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import tvm_ffi

import kvctl.torch
from devices import require
from kvctl import Mask
from torch_reference import BOUND, DIM, HEADS, LAYERS, causal, error, make_cache, plain, rows

pytestmark = [pytest.mark.cuda, pytest.mark.torch]
DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _device():
    require("cuda")
    if not torch.cuda.is_available():
        pytest.skip("needs a PyTorch with CUDA")


def cuda_cache(dtype=torch.float16, **changes):
    cache = make_cache(device="cuda", dtype=str(dtype).removeprefix("torch."), **changes)
    cache.add_sequence(0)
    return cache


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = torch.nn.ModuleList(kvctl.torch.Attention(i) for i in range(LAYERS))

    def forward(self, q, k, v):
        each = zip(self.attend, q, k, v, strict=True)
        return torch.stack([attend(one, two, v) for attend, one, two, v in each])


def run(model, cache, parts, begin, end, **options):
    new = [part[:, None, :, begin:end].clone() for part in parts]
    with torch.inference_mode(), kvctl.torch.forward(cache, [0], [end - begin], **options) as where:
        assert where.is_cuda
        return model(*new)[:, 0]


def expected(parts, begin, end, sees=None):
    q, k, v = parts
    sees = causal(end - begin, end) if sees is None else sees
    return plain(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], sees)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_of_a_sequence(dtype, compiled):
    torch.compiler.reset()
    model = torch.compile(Model(), fullgraph=True, backend="aot_eager") if compiled else Model()
    cache, parts = cuda_cache(dtype), rows(50, dtype=dtype, device="cuda")
    for begin, end in ((0, 33), (33, 34), (34, 50)):
        out = run(model, cache, parts, begin, end)
        assert out.is_cuda
        assert out.dtype is dtype
        assert error(out, expected(parts, begin, end)) < BOUND[dtype]


def test_a_tree_and_its_commit():
    cache, parts = cuda_cache(), rows(14, dtype=torch.float16, device="cuda")
    run(Model(), cache, parts, 0, 10)
    out = run(Model(), cache, parts, 10, 14, mask=Mask.tree([-1, 0, 0, 2]))
    sees = causal(4, 14)
    sees[2, 11] = sees[3, 11] = False  # node 1 is on no path to these
    assert error(out, expected(parts, 10, 14, sees)) < BOUND[torch.float16]
    cache.commit([0], [[0, 2, 3]])
    path = torch.tensor([*range(11), 12, 13], device="cuda")
    new = rows(1, 1, torch.float16, "cuda")
    out = run(Model(), cache, new, 0, 1)
    k, v = (torch.cat([parts[i][:, :, path], new[i]], 2) for i in (1, 2))
    assert error(out, plain(new[0], k, v, causal(1, 14))) < BOUND[torch.float16]


@pytest.mark.parametrize("packed", [False, True])
def test_strides_change_no_bit(packed):
    parts = rows(6, dtype=torch.float16, device="cuda")
    outs = []
    for change in (lambda x: x, lambda x: x.repeat_interleave(2, -1)[..., ::2]):
        cache = cuda_cache()
        q, k, v = (change(part[0]) for part in parts)
        if packed:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        else:
            q, k, v = (x[None] for x in (q, k, v))
        with cache.forward([0], [6], pending=True):
            outs.append(kvctl.torch.attention(cache, 0, q, k, v))
    assert outs[0].equal(outs[1])


def test_work_goes_to_torch_s_current_stream():
    """q, k and v come late on a stream of its own; a call on another one would read zeros."""
    cache, parts = cuda_cache(), rows(40, dtype=torch.float16, device="cuda")
    late = [torch.zeros_like(part) for part in parts]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for into, part in zip(late, parts, strict=True):
            into.copy_(part)
        first = run(Model(), cache, late, 0, 30)
        second = run(Model(), cache, late, 30, 40)
    stream.synchronize()
    assert error(first, expected(parts, 0, 30)) < BOUND[torch.float16]
    assert error(second, expected(parts, 30, 40)) < BOUND[torch.float16]


def test_commit_on_torch_s_stream():
    cache, parts = cuda_cache(), rows(14, dtype=torch.float16, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), tvm_ffi.use_torch_stream():
        run(Model(), cache, parts, 0, 10)
        run(Model(), cache, parts, 10, 13, mask=Mask.tree([-1, 0, 0]))
        cache.commit([0], [[0, 2]])
        out = run(Model(), cache, parts, 13, 14)
    stream.synchronize()
    path = torch.tensor([*range(11), 12, 13], device="cuda")
    q, k, v = parts
    assert (
        error(out, plain(q[:, :, 13:], k[:, :, path], v[:, :, path], causal(1, 13)))
        < (BOUND[torch.float16])
    )


def test_memory_is_shared():
    tensor = torch.arange(12.0, device="cuda")
    there = kvctl.torch.to_cache(tensor)
    assert there.data_ptr() == kvctl.torch.from_cache(there).data_ptr() == tensor.data_ptr()


def test_tensors_of_another_device_are_refused():
    cache = cuda_cache()
    q, k, v = (part[:1] for part in rows(3, dtype=torch.float16))
    with (
        pytest.raises(ValueError, match="device, cuda:0, got cuda:0, cpu and cuda:0"),
        kvctl.torch.forward(cache, [0], [3]),
    ):
        kvctl.torch.attention(cache, 0, q.cuda(), k, v.cuda())
    assert cache.sequence_length(0) == 0


def test_logits_are_verified_where_they_are():
    tree = kvctl.TokenTree([7, 1, 2], [-1, 0, 0])
    logits = torch.zeros(3, 256, device="cuda")
    logits[0, 2] = logits[2, 9] = 5.0
    result = kvctl.verify(logits, tree, rule="greedy", drawn="deterministic")
    assert [int(token) for token in result.tokens[0]] == [2, 9]


def test_options():
    cache = cuda_cache()
    q, k, v = (part[:1] for part in rows(9, dtype=torch.float16, device="cuda"))
    lse = torch.empty(9, HEADS, device="cuda")
    with cache.forward([0], [9], pending=True):
        out = kvctl.torch.attention(cache, 0, q, k, v, scale=0.5, lse=lse)
    assert out.shape == (1, HEADS, 9, DIM)
    assert error(out, plain(q, k, v, causal(9, 9), scale=0.5)) < BOUND[torch.float16]
    assert torch.isfinite(lse).all()
