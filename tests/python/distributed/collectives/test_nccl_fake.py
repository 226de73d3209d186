"""Collectives over NCCL once more, over a stand-in for it: arguments, order and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices import KVCTL_CUDA_LIBRARY, why_no_cuda
from kvctl._ffi import libraries
from kvctl._ffi.find_nccl import NCCL_VARIABLE
from kvctl.distributed import collectives

ROOT = Path(__file__).parents[4]


def built(name: str) -> str:
    """Return a library of the C++ tests."""
    found = [*ROOT.glob(f"build/*/tests/cpp/*/{name}"), *libraries.library_dir().glob(name)]
    if not found:
        pytest.skip("needs the C++ tests: configure with KVCTL_BUILD_TESTS=ON")
    return str(max(found, key=lambda path: path.stat().st_mtime))


def test_the_tests_of_nccl_pass_over_a_stand_in():
    if os.environ.get(KVCTL_CUDA_LIBRARY) or why_no_cuda() is None:
        pytest.skip("runs where there is no GPU")
    if "nccl" not in collectives.available():
        pytest.skip("needs collectives over NCCL: build without -DKVCTL_DISTRIBUTED=OFF")
    emulated = {
        KVCTL_CUDA_LIBRARY: built("libkvctl_cuda_emulation.so"),
        NCCL_VARIABLE: built("libkvctl_fake_nccl.so"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("test_nccl.py"))],
        env=os.environ | emulated,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-800:]
