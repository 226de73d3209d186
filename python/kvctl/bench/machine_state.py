"""The machine that figures were measured on, and how busy it was."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .._ffi import functions as ffi
from .._ffi.cpu_info import cpu_info, cpu_model

_PACKAGES = ("kvctl", "apache-tvm", "apache-tvm-ffi", "numpy", "onednn-cpu-gomp")
_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KVCTL_ISA")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine() -> dict[str, Any]:
    """Return what a benchmark's reader must know of the machine and the versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "isa": str(ffi.build.get_isa()),
        "openmp_threads": ffi.build.get_openmp_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def machine_load() -> dict[str, Any]:
    """Return how busy the machine is now, and what decides how fast it runs.

    Returns
    -------
    dict
        ``load``, the number of threads that ran or wanted to, a mean over the last minute;
        ``megahertz`` of the fastest core; ``governor``, None where the system does not say;
        ``settings``, the environment's of threads.
    """
    clocks = [float(value) for value in cpu_info("cpu MHz")]
    return {
        "load": round(os.getloadavg()[0], 2),
        "megahertz": round(max(clocks)) if clocks else None,
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def memory_bandwidth(threads: int, repeat: int = 5) -> float:
    """Return the bytes per second that threads together read from the machine's memory.

    Parameters
    ----------
    threads
        How many read, each an array of 256 MiB, which is far larger than most caches.
    repeat
        Readings, of which the fastest counts.
    """
    parts = [np.ones(1 << 26, np.float32) for _ in range(threads)]
    least = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat + 1):  # the first one warms up
            begin = perf_counter()
            list(pool.map(lambda part: np.dot(part, part), parts))
            least = min(least, perf_counter() - begin)
    return sum(part.nbytes for part in parts) / least
