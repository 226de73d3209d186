"""The tests on CUDA once more, with the kernels run on the CPU: logic, not hardware."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices import KVCTL_CUDA_LIBRARY, why_no_cuda
from kvctl._ffi import libraries

ROOT = Path(__file__).parents[3]


def emulation() -> Path:
    """Return the library that stands in for libkvctl_cuda.so, of the build that is installed."""
    built = [
        *ROOT.glob("build/*/tests/cpp/cuda/libkvctl_cuda_emulation.so"),
        *libraries.library_dir().glob("libkvctl_cuda_emulation.so"),
    ]
    if not built:
        pytest.skip("needs the C++ tests: configure with KVCTL_BUILD_TESTS=ON")
    return max(built, key=lambda path: path.stat().st_mtime)


STEPS = ["device_hooks", "device_sinks", "device_forks", "cuda_graph", "step_graph"]
OTHERS = ["devices", "capabilities", "cuda_streams", "cuda_memory", "current_device"]
OTHERS += ["device_verification", "float8_pages"]
UPLOADS = ["resident_tables"]


@pytest.mark.parametrize("names", [STEPS, OTHERS, UPLOADS], ids=["steps", "others", "uploads"])
def test_the_tests_on_cuda_pass_under_emulation(names: list[str]):
    if os.environ.get(KVCTL_CUDA_LIBRARY) or why_no_cuda() is None:
        pytest.skip("runs where there is no GPU")
    files = [str(ROOT / f"tests/python/cuda/test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["-k", "not torch"]  # it knows nothing of the emulated device
    done = subprocess.run(
        [*command, *files],
        env=os.environ | {KVCTL_CUDA_LIBRARY: str(emulation())},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, json.dumps(done.stdout[-800:])
