"""Tensors cross between torch and the cache without a copy."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import tvm_ffi

import kvctl.torch
from kvctl.torch.tensors import stream_of
from torch_reference import BOUND, make_cache

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", [*BOUND, torch.int32, torch.int64], ids=str)
def test_memory_is_shared(dtype):
    tensor = torch.arange(12).to(dtype).reshape(3, 4)
    there = kvctl.torch.to_cache(tensor)
    back = kvctl.torch.from_cache(there)
    assert there.data_ptr() == back.data_ptr() == tensor.data_ptr()
    assert back.dtype is dtype
    back[1, 1] = 77
    assert tensor[1, 1] == 77


def test_in_inference_mode_too():
    with torch.inference_mode():
        tensor = torch.ones(3) * 2
        assert kvctl.torch.to_cache(tensor).data_ptr() == tensor.data_ptr()


def test_a_tensor_of_autograd_is_refused():
    parameter = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"tensor requires grad .* torch\.inference_mode\(\)"):
        kvctl.torch.to_cache(parameter)
    with torch.no_grad():
        assert kvctl.torch.to_cache(parameter).data_ptr() == parameter.data_ptr()
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        kvctl.torch.to_cache([1.0])


def test_positions_are_a_copy_that_the_next_step_leaves_alone():
    cache = make_cache()
    cache.add_sequence(0)
    with kvctl.torch.forward(cache, [0], [3]) as first:
        cache.abort()
        cache.begin_forward([0], [2], positions=[7, 8])
        shared = kvctl.torch.from_cache(cache.query_positions())
        assert first.tolist() == [0, 1, 2]
        assert first.dtype is torch.int64
        assert shared.tolist() == [7, 8]
        assert shared.dtype is torch.int32


def test_work_on_a_gpu_goes_to_torch_s_stream(monkeypatch):
    """Without a GPU: which stream the library is told to use."""
    gpu = tvm_ffi.device("cuda:1")
    stream = SimpleNamespace(cuda_stream=4321)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    before = tvm_ffi.get_raw_stream(gpu)
    with stream_of(torch.device("cuda", 1)):
        assert tvm_ffi.get_raw_stream(gpu) == 4321
    assert tvm_ffi.get_raw_stream(gpu) == before
