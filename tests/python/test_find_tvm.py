"""cmake/FindTVM.cmake: which TVM a build accepts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = f"""
cmake_minimum_required(VERSION 3.25)
project(find LANGUAGES NONE)
set(Python_EXECUTABLE "{sys.executable}")
include("{ROOT}/cmake/FindTVM.cmake")
"""


def package(folder, name, version, library):
    (folder / name / "lib").mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "_version.py").write_text(f"version = {version!r}\n")
    # Any ELF file.
    (folder / name / "lib" / library).write_bytes(Path(sys.executable).resolve().read_bytes())


@pytest.mark.parametrize("version", ["0.25.0", "0.26.0.post1", "0.28.0"])
def test_another_release_is_refused_by_name(tmp_path, version):
    package(tmp_path, "tvm", version, "libtvm_runtime.so")
    package(tmp_path, "tvm_ffi", "0.1.12", "libtvm_ffi.so")
    header = tmp_path / "tvm" / "src" / "runtime" / "vm" / "kv_state.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    cmake = Path(sys.executable).with_name("cmake")
    done = subprocess.run(
        [cmake, "-S", tmp_path, "-B", tmp_path / "build"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    message = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert f"kvctl is written for TVM 0.27, and {sys.executable} has TVM {version} at" in message
    assert "pip install apache-tvm==0.27.0.post1" in message
