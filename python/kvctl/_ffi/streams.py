"""The CUDA stream on which PyTorch works: kvctl's functions queue their work there, too."""

from __future__ import annotations

import sys

import tvm_ffi

from . import functions as ffi


def torch_stream(device: int) -> int:
    """Return torch's current stream of a device as a ``cudaStream_t``.

    0, the default stream, where torch is not imported or has not used CUDA yet: then it can have
    chosen no other stream. Importing torch here would take a second.
    """
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return 0
    stream: int = cuda.current_stream(device).cuda_stream
    return stream


def follow_torch() -> None:
    """Let kvctl's functions ask for torch's stream wherever TVM's own was not set.

    ``tvm_ffi.use_torch_stream`` and ``tvm_ffi.use_raw_stream`` still count more.
    """
    ffi.build.set_stream_source(tvm_ffi.convert(torch_stream))
