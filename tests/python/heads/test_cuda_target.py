"""Heads are compiled for CUDA, and nvcc takes their kernels; no GPU is needed."""

from __future__ import annotations

import shutil

import pytest

from head_checkpoint import write_head
from kvctl.heads.compile import compile_head

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.mark.parametrize("case", ["eagle", "eagle3", "medusa"])
def test_nvcc_takes_its_kernels(tmp_path, target, case):
    head = write_head(tmp_path / "head", case)
    output = compile_head(head, tmp_path / "out", target_model=target, target="cuda")
    assert (output / "lib.so").stat().st_size > 0
