"""Devices as tests see them: the CPU, and CUDA where there is a GPU or an emulation of one."""

from __future__ import annotations

import os

import numpy as np
import pytest

KVCTL_CUDA_LIBRARY = "KVCTL_CUDA_LIBRARY"  # names an emulation of the kernels on the CPU


def why_no_cuda() -> str | None:
    """Say why tests on CUDA cannot run; None where they can."""
    if os.environ.get(KVCTL_CUDA_LIBRARY):
        return None
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs a CUDA device: this machine has no NVIDIA driver"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "needs a CUDA device: the driver finds none"
    return None if count.value > 0 else "needs a CUDA device: the driver finds none"


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def require(device: str) -> None:
    """Skip the test where it cannot run."""
    reason = why_no_cuda() if device == "cuda" else None
    if reason is not None:
        pytest.skip(reason)
    if device == "cuda":
        # The kernels load with the first cache; tensors need TVM's device before that.
        import kvctl

        kvctl.PagedKVCache.create(
            num_layers=1,
            num_qo_heads=1,
            num_kv_heads=1,
            head_dim=64,
            max_total_tokens=16,
            dtype="float16",
            device="cuda",
        )


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Values that the dtype holds exactly, as float64."""
    import ml_dtypes

    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
    return np.asarray(array).astype(types[dtype]).astype(np.float64)


def put(array: np.ndarray, device: str, dtype: str | None = None):
    """A tensor on a device."""
    import ml_dtypes
    import tvm

    array = np.ascontiguousarray(array)
    if dtype is not None:
        array = array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return tvm.runtime.tensor(array, device=tvm.runtime.device(device))


def poison(shape: tuple[int, ...], device: str, dtype: str):
    """A tensor of NaN, for outputs."""
    return put(np.full(shape, np.nan, np.float32), device, dtype)


def fetch(tensor) -> np.ndarray:
    """A tensor of any device and dtype as a NumPy array, floats as float64."""
    import tvm

    if isinstance(tensor, np.ndarray):  # which TVM takes only where it happens to be aligned
        array = tensor
    else:
        if not isinstance(tensor, tvm.runtime.Tensor):
            tensor = tvm.runtime.from_dlpack(tensor)
        array = tensor.numpy()
    return array.astype(np.float64) if array.dtype.kind not in "iub" else array
