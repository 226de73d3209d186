"""Compile a model's graph into a library that TVM's virtual machine loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.support.cc import get_cc

_DEFAULT_ARCH = "sm_80"

LIBRARY_BYTES = 16 << 20
"""More than a compiled library, and the object files that it is linked from, take."""


def make_target(name: str) -> Any:
    """Return TVM's target for "cpu", "cuda" or "cuda:sm_90".

    Raises
    ------
    FileNotFoundError
        If it is CUDA and there is no nvcc.
    ValueError
        If kvctl cannot compile for it.
    """
    if name == "cpu":
        return tvm.target.Target("llvm")
    kind, _, arch = name.partition(":")
    arch = arch or _DEFAULT_ARCH
    if kind != "cuda" or not re.fullmatch(r"sm_[0-9]{2,3}[a-z]?", arch):
        raise ValueError(f"target must be 'cpu', 'cuda' or like 'cuda:sm_90', not '{name}'")
    if shutil.which("nvcc") is None:
        raise FileNotFoundError("compiling for CUDA needs nvcc (of CUDA 13) on the PATH")
    # No device is asked, so that this works on machines without one.
    cuda = {
        "kind": "cuda",
        "arch": arch,
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": 32,
    }
    return tvm.target.Target(cuda, host="llvm")


def check_compiler() -> None:
    """Make sure that TVM finds the C++ compiler that it links libraries with.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if get_cc() is None:
        raise FileNotFoundError(
            "compiling needs a C++ compiler: put g++, gcc, clang++ or clang on the PATH, or name "
            "one by the environment variable CXX"
        )


def build(module: tvm.IRModule, metadata: dict[str, Any], target: Any) -> Any:
    """Compile the graph, with ``_metadata`` added; returns TVM's executable.

    Raises
    ------
    ValueError
        If nvcc refuses the kernels that TVM wrote for CUDA.
    """
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    executable = relax.build(builder.get(), target)
    if target.kind.name == "cuda":
        _check_kernels(executable.mod, target.attrs["arch"])
    return executable


@contextmanager
def building(
    module: tvm.IRModule, metadata: dict[str, Any], target: Any, library: Path
) -> Iterator[Future[None]]:
    """Compile the graph into a file in a thread, while the caller does something else.

    The thread has ended when the context is left, whatever was raised in it. The future raises
    what `build` does, and OSError if there is no room for the file.
    """

    def act() -> None:
        executable = build(module, metadata, target)
        _check_room(library)
        executable.export_library(str(library))

    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(act)


def _check_room(library: Path) -> None:
    """Make sure that a library can be written: where it cannot, LLVM ends the process."""
    with library.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, LIBRARY_BYTES)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(library)) from None
    library.unlink()


def _check_kernels(module: Any, arch: str) -> None:
    """Have nvcc compile the kernels of a module and the modules in it.

    Without a driver TVM saves kernels as CUDA sources, compiled when they are loaded: what
    nvcc would refuse there is better refused here.
    """
    for imported in module.imports:
        _check_kernels(imported, arch)
    if module.kind != "cuda":
        return
    command = ["nvcc", f"-arch={arch}", "-w", "-x", "cu", "--fatbin", "-o", os.devnull, "-"]
    run = subprocess.run(
        command, input=module.inspect_source(), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ValueError(f"nvcc refuses this model's kernels for {arch}:\n{run.stderr.strip()}")
