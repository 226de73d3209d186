"""A C++ program finds kvctl with CMake, links it, and decodes as Python does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import kvctl
from cmake_project import build_project

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
PROMPT = [5, 9, 30, 7, 5, 9, 30, 7, 5, 9]


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    build = tmp_path_factory.mktemp("example")
    build_project(SOURCE, build)
    return build / "decode"


def run(decode, *arguments, prompt=PROMPT):
    text = " ".join(map(str, prompt))
    command = [decode, *map(str, arguments)]
    # An empty environment: the program finds every library by itself.
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env={})


def greedy(model, count):
    runner = kvctl.ModelRunner.load(model)
    runner.cache.add_sequence(0)
    logits = runner.prefill([0], [PROMPT])
    tokens = []
    for _ in range(count):
        tokens.append(int(np.from_dlpack(logits)[0].argmax()))
        logits = runner.decode([0], tokens[-1:])
    return tokens


def test_plain_and_speculative_decoding_agree_with_python(decode, tiny_model):
    expected = greedy(tiny_model, 40)
    forwards = {}
    for draft in (0, 7):
        ran = run(decode, tiny_model, "--draft", draft, "--max-tokens", 40)
        assert ran.returncode == 0, ran.stderr
        assert list(map(int, ran.stdout.split())) == expected
        forwards[draft] = int(ran.stderr.split(" forwards")[0].split()[-1])
    assert forwards[0] == 39
    assert forwards[7] < 39  # a random model soon repeats itself


def test_errors_are_one_line(decode, tmp_path, tiny_model):
    ran = run(decode, tmp_path / "absent")
    assert ran.returncode == 1
    assert ran.stderr.startswith("decode: there is no model directory")
    ran = run(decode, tiny_model, prompt=[300])
    assert ran.returncode == 1
    assert "token 300 for sequence 0 is not in the model's vocabulary [0, 256)" in ran.stderr
    ran = run(decode, tiny_model, prompt=[])
    assert ran.returncode == 1
    assert "there are no tokens for sequence 0" in ran.stderr
