"""The callback by which TVM's CUDA runtime compiles kernels that a model library holds as source.

A library that was compiled on a machine without a driver holds sources. TVM's own callback is in
``tvm.support.nvcc``, which needs more than TVM's runtime; this one needs only nvcc.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import tvm_ffi

_CALLBACK = "tvm_callback_cuda_compile"


def prepare_device(name: str) -> None:
    """Register the callback before a library is loaded for CUDA, unless there is one."""
    if not name.startswith("cuda"):
        return
    if tvm_ffi.get_global_func(_CALLBACK, allow_missing=True) is None:
        tvm_ffi.register_global_func(_CALLBACK, compile_kernels)


def compile_kernels(code: str) -> bytes:
    """Compile CUDA source for the GPU of this machine.

    Raises
    ------
    FileNotFoundError
        If there is no nvcc.
    ValueError
        If nvcc refuses the source.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise FileNotFoundError("the model's CUDA kernels come as source: nvcc must be on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.fatbin"
        command = [nvcc, "-arch=native", "-O3", "-w", "-x", "cu", "--fatbin", "-o", str(output)]
        run = subprocess.run(
            [*command, "-"], input=code, capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise ValueError(f"nvcc refuses the model's kernels:\n{run.stderr.strip()}")
        return output.read_bytes()
