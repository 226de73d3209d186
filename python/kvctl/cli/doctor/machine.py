"""What the machine has: vector instructions, cores and threads, CUDA."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

from ..._ffi.cpu_info import cpu_info, cpu_model
from .check import Check, note, ok, warn


def machine_checks(probed: dict[str, Any], tvm: Path | None) -> Iterator[Check]:
    """Look at the processor, the threads and the GPUs."""
    yield _instructions(probed)
    yield from _kernels(probed)
    yield _threads(probed)
    yield _load()
    yield _tvm_threads()
    yield _cuda_devices(tvm)
    yield _nvcc()


def _instructions(probed: dict[str, Any]) -> Check:
    flags = next(iter(cpu_info("flags")), "").split()
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16")
    has = [name for name in wanted if name in flags]
    used = probed.get("isa")
    found = f"{cpu_model()}: {' '.join(has) or 'no AVX2'}" + (
        f"; kvctl uses {used}" if used else ""
    )
    if "avx2" not in has:
        return warn("instructions", found, "kvctl's fast kernels need AVX2 or AVX-512")
    if os.environ.get("KVCTL_ISA"):
        return warn(
            "instructions",
            f"{found}; KVCTL_ISA={os.environ['KVCTL_ISA']} narrows the choice",
            "unset KVCTL_ISA unless you meant it",
        )
    return ok("instructions", found)


def _kernels(probed: dict[str, Any]) -> Iterator[Check]:
    """Say which kernels multiply which weights, and how many rows they serve."""
    kernels = probed.get("kernels")
    if kernels:
        types: dict[str, list[str]] = {}
        for dtype, names in kernels.items():
            types.setdefault(", ".join(names), []).append(dtype)
        texts = [f"{' and '.join(dtypes)}: {names}" for names, dtypes in types.items()]
        yield ok("linear layers", "; ".join(texts))


def _threads(probed: dict[str, Any]) -> Check:
    allowed = len(os.sched_getaffinity(0))
    settings = [
        f"{name}={os.environ[name]}"
        for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
        if name in os.environ
    ]
    threads = probed.get("openmp_threads")
    found = f"{allowed} of {os.cpu_count()} CPUs allowed"
    if threads is not None:
        found += f", OpenMP runs {threads} threads"
    if settings:
        found += f" ({' '.join(settings)})"
    if probed.get("cpus", allowed) < allowed:
        return warn(
            "threads",
            f"{found}; after import only {probed['cpus']} CPUs: something pinned the thread",
            "set TVM_BIND_THREADS=0",
        )
    if threads is not None and threads > allowed:
        return warn("threads", found, f"OMP_NUM_THREADS={allowed} avoids threads that wait in turn")
    return ok("threads", found)


def _load() -> Check:
    # Runnable threads of the machine besides this one; a short peak does not count as load.
    counts = []
    for _ in range(5):
        counts.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
        sleep(0.05)
    busy, cpus = min(counts), os.cpu_count() or 1
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    found = f"{busy} other threads want {cpus} CPUs; OMP_WAIT_POLICY={policy}"
    if busy >= cpus and policy.lower() != "passive":
        return warn(
            "load",
            found,
            "OMP_WAIT_POLICY=passive: on a busy machine, OpenMP threads that spin while they wait "
            "make a forward ten times slower",
        )
    return ok("load", found)


def _tvm_threads() -> Check:
    bind = os.environ.get("TVM_BIND_THREADS", "0")
    spin = os.environ.get("TVM_THREAD_POOL_SPIN_COUNT", "0")
    count = os.environ.get("TVM_NUM_THREADS", "default")
    found = f"TVM_BIND_THREADS={bind} TVM_THREAD_POOL_SPIN_COUNT={spin} TVM_NUM_THREADS={count}"
    if bind != "0" or spin != "0":
        return warn(
            "TVM threads",
            found,
            "TVM's pool pins or spins and disturbs OpenMP: unset both, kvctl sets them to 0",
        )
    return ok("TVM threads", found)


def _cuda_devices(tvm: Path | None) -> Check:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return note("CUDA devices", "no driver (libcuda.so.1): kvctl runs on the CPU")
    count = ctypes.c_int(0)
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
        or not count.value
    ):
        return warn("CUDA devices", "a driver but no usable device", "nvidia-smi says more")
    names = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(name, len(name), index)
        names.append(name.value.decode())
    found = ", ".join(names)
    if tvm is None or not (tvm / "lib" / "libtvm_runtime_cuda.so").exists():
        return warn("CUDA devices", f"{found}, but TVM has no CUDA runtime", "install apache-tvm")
    try:
        ctypes.CDLL("libcudart.so.13")
    except OSError:
        return warn(
            "CUDA devices",
            f"{found}, but no libcudart.so.13, which TVM's CUDA runtime needs",
            "pip install nvidia-cuda-runtime, or put CUDA 13's lib64 on LD_LIBRARY_PATH",
        )
    return ok("CUDA devices", found)


def _nvcc() -> Check:
    path = shutil.which("nvcc")
    if path is None:
        return note("nvcc", "not found: no CUDA kernels, no models compiled for CUDA")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release ([\d.]+)", done.stdout)
    return ok("nvcc", f"{release.group(1) if release else 'unknown release'} at {path}")
