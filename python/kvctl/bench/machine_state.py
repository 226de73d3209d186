"""The machine that figures were measured on, and how busy it was."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

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
