"""Building a C++ project that finds kvctl with CMake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvctl


def build_project(source: Path, build: Path) -> None:
    """Configure and build; skips the test where there is no CMake."""
    beside_python = Path(sys.executable).parent / "cmake"
    cmake = beside_python if beside_python.exists() else shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    for command in (
        [cmake, "-S", source, "-B", build, f"-Dkvctl_DIR={kvctl.cmake_dir()}"],
        [cmake, "--build", build],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
