"""_core.pyi: the names and arguments that the extension module has, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# pybind11 gives its classes a metaclass, and a class without a constructor a general one.
ALLOWED = r"""
kvctl\._core\.[A-Z]\w*
kvctl\._core\.Mask\.__init__
"""


def test_the_stub_describes_the_module(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "allowed").write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "kvctl._core", "--allowlist"]
    options = [tmp_path / "allowed", "--mypy-config-file", ROOT / "pyproject.toml"]
    run = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr
