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


def sampled(model, count, *, temperature, seed):
    runner = kvctl.ModelRunner.load(model)
    runner.cache.add_sequence(0)
    logits = runner.prefill([0], [PROMPT])
    sampling = kvctl.Sampling(temperature=temperature)
    tokens = []
    for _ in range(count):
        where = len(PROMPT) + len(tokens)
        tokens += kvctl.sample(
            logits, sampling=sampling, seed=seed, request_ids=[0], positions=[where]
        ).tolist()
        logits = runner.decode([0], tokens[-1:])
    return tokens


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled_decoding_agrees_with_plain_sampling_in_python(decode, tiny_model, temperature):
    expected = sampled(tiny_model, 40, temperature=temperature, seed=11)
    options = ("--max-tokens", 40, "--temperature", temperature, "--seed", 11)
    for draft in (0, 7):
        ran = run(decode, tiny_model, "--draft", draft, *options)
        assert ran.returncode == 0, ran.stderr
        assert list(map(int, ran.stdout.split())) == expected


def test_every_rule_for_chains_decodes(decode, tiny_model):
    expected = greedy(tiny_model, 20)
    for rule in ("greedy", "target_only", "token_wise", "block", "traversal"):
        ran = run(decode, tiny_model, "--rule", rule, "--max-tokens", 20)
        assert ran.returncode == 0, ran.stderr
        assert list(map(int, ran.stdout.split())) == expected
    ran = run(decode, tiny_model, "--rule", "block", "--temperature", 1, "--max-tokens", 20)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 20


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
    ran = run(decode, tiny_model, "--rule", "best")
    assert ran.returncode == 1
    assert ran.stderr == "decode: there is no rule best\n"
    ran = run(decode, tiny_model, "--rule", "greedy", "--temperature", 1)
    assert ran.returncode == 1
    assert "rule 'greedy' is lossless only at temperature 0, got temperature 1" in ran.stderr
