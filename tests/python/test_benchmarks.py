"""The benchmarks run. What they measure is not asserted: only that they print and write it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVERS = Path(__file__).parents[2] / "benchmarks" / "python"


@pytest.mark.parametrize(
    ("driver", "arguments"),
    [
        ("attention", ["--parts", "observer", "--rounds", "1", "--threads", "1"]),
        ("verify", ["--quick", "--vocab", "512", "--draft", "2"]),
        ("linear", "--types int8 --rows 1 2 --shape 64 64 --megabytes 1 --repeat 1".split()),
        ("dtypes", ["{smollm2}", "{smollm2}"]),
        ("drafting", ["--tokens", "20000", "--repeat", "1"]),
        ("model", ["{smollm2}", "--repeat", "1", "--rows", "1", "2"]),
        ("generate", ["{smollm2}", "--repeat", "1", "--tokens", "8", "--prompts", "open"]),
        ("rules", ["{smollm2}", "--rounds", "1", "--prompts", "1"]),
        ("loop", ["{smollm2}", *"--repeat 1 --tokens 8 --prompts open --copies 4".split()]),
    ],
)
def test_driver_prints_a_table_and_writes_json(driver, arguments, tmp_path, smollm2):
    result = tmp_path / "result.json"
    command = [sys.executable, DRIVERS / f"bench_{driver}.py", "--json", result]
    done = subprocess.run(
        [*command, *(argument.format(smollm2=smollm2) for argument in arguments)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2
    assert json.loads(result.read_text())


def test_perplexity_of_even_logits_is_the_vocabulary(monkeypatch):
    np = pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(str(DRIVERS))
    import perplexity

    tokens = [3, 1, 4, 1] * 128
    even = perplexity.log_probability(np.full((512, 8), 2.5, np.float32), tokens)
    assert perplexity.perplexity([even, even]) == pytest.approx(8)
    sure = np.full((512, 8), -1e4, np.float32)
    sure[np.arange(511), tokens[1:]] = 0
    assert perplexity.perplexity([perplexity.log_probability(sure, tokens)]) == pytest.approx(1)
