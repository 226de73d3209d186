"""The benchmark of kvctl.torch runs. What it measures is not asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

pytestmark = pytest.mark.torch

DRIVER = Path(__file__).parents[3] / "benchmarks" / "python" / "bench_torch.py"


def test_it_prints_a_table_and_writes_json(tmp_path):
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, DRIVER, "--rounds", "1", "--contexts", "16", "--json", result],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 4
    assert json.loads(result.read_text())["shares_memory"] is True
