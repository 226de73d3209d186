"""Kernels that come as source: what is said where they cannot be compiled."""

from __future__ import annotations

import shutil

import pytest

from kvctl._ffi import cuda_compiler


def test_without_nvcc(monkeypatch):
    monkeypatch.setattr(cuda_compiler.shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(FileNotFoundError, match="nvcc must be on the PATH"):
        cuda_compiler.compile_kernels("")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_source_that_nvcc_refuses():
    with pytest.raises(ValueError, match="nvcc refuses the model's kernels"):
        cuda_compiler.compile_kernels("__global__ void f() { undeclared(); }")
