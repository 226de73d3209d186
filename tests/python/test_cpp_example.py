"""A C++ program finds kvctl with CMake, links it, and decodes as Python does."""

from __future__ import annotations

import re
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


def run(decode, *arguments, prompts=(PROMPT,)):
    text = "".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts)
    command = [decode, *map(str, arguments)]
    # An empty environment: the program finds every library by itself.
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env={})


def texts(ran):
    assert ran.returncode == 0, ran.stderr
    return [list(map(int, line.split())) for line in ran.stdout.splitlines()]


def drafters(model):
    """Return the options for each way to draft, none first; a model drafts for itself."""
    return [["none"], ["lookup"], ["suffix"], ["model", model]]


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
    rounds = {}
    for drafter in drafters(tiny_model):
        options = ("--drafter", *drafter, "--max-tokens", 40)
        assert texts(run(decode, tiny_model, *options)) == [expected]
        ran = run(decode, tiny_model, *options, "--always")
        assert texts(ran) == [expected]
        rounds[drafter[0]] = int(ran.stderr.split(" rounds")[0].split()[-1])
    assert rounds["none"] == 39
    assert rounds["lookup"] < 39 and rounds["suffix"] < 39  # a random model soon repeats itself
    assert rounds["model"] == 5  # 7 drafts and the bonus each


def test_lines_are_prompts_that_are_decoded_together(decode, tiny_model):
    prompts = [PROMPT, [3], [8, 8, 1] * 7, [200, 100], PROMPT[2:], [9, 9]]
    runner = kvctl.ModelRunner.load(tiny_model)
    expected = kvctl.generate(
        runner, prompts, max_new_tokens=30, sampling=kvctl.Sampling(temperature=0.5), seed=4
    )
    for drafter in drafters(tiny_model):
        options = ("--drafter", *drafter, "--max-tokens", 30, "--temperature", 0.5, "--seed", 4)
        ran = run(decode, tiny_model, *options, prompts=prompts)
        assert texts(ran) == [text.tokens for text in expected]


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
    for drafter in drafters(tiny_model):
        assert texts(run(decode, tiny_model, "--drafter", *drafter, *options)) == [expected]


def test_every_rule_for_chains_decodes(decode, tiny_model):
    expected = greedy(tiny_model, 20)
    for drafter in (["lookup"], ["model", tiny_model]):
        options = ("--drafter", *drafter, "--max-tokens", 20)
        for rule in ("greedy", "target_only", "token_wise", "block", "traversal"):
            assert texts(run(decode, tiny_model, *options, "--rule", rule)) == [expected]
        ran = run(decode, tiny_model, *options, "--rule", "block", "--temperature", 1)
        assert [len(text) for text in texts(ran)] == [20]
    options = ("--drafter", "model", tiny_model, "--rule", "coupled", "--temperature", 1)
    ran = run(decode, tiny_model, *options, "--draft", 4, "--max-tokens", 21)
    assert [len(text) for text in texts(ran)] == [21]
    assert "16 of 16 drafts accepted" in ran.stderr  # the same model with the same noise


def test_errors_are_one_line(decode, tmp_path, tiny_model):
    ran = run(decode, tmp_path / "absent")
    assert ran.returncode == 1
    assert ran.stderr.startswith("decode: there is no model directory")
    ran = run(decode, tiny_model, prompts=[PROMPT, [300]])
    assert ran.returncode == 1
    assert "prompt 1 has token 300; the vocabulary is 0 to 255" in ran.stderr
    ran = run(decode, tiny_model, prompts=[[]])
    assert ran.returncode == 1
    assert "prompt 0 must have at least one token" in ran.stderr
    ran = run(decode, tiny_model, prompts=[PROMPT, [5, "nine", 30]])
    assert ran.stderr == "decode: a prompt is a line of token ids, got 5 nine 30\n"
    ran = run(decode, tiny_model, prompts=[[5, 99999999999]])  # its last id was left out once
    assert ran.stderr == "decode: a prompt is a line of token ids, got 5 99999999999\n"
    ran = run(decode, tiny_model, prompts=[])
    assert ran.returncode == 0 and "nan" not in ran.stderr
    ran = run(decode, tiny_model, "--rule", "best")
    assert ran.returncode == 1
    assert ran.stderr == "decode: there is no rule best\n"
    ran = run(decode, tiny_model, "--rule", "greedy", "--temperature", 1)
    assert ran.returncode == 1
    assert "rule 'greedy' is lossless only at temperature 0, got temperature 1" in ran.stderr
    ran = run(decode, tiny_model, "--drafter", "oracle")
    assert ran.stderr == "decode: no drafter oracle\n"
    ran = run(decode, tiny_model, "--drafter", "model")
    assert ran.stderr == "decode: model needs a value\n"
    ran = run(decode, tiny_model, "--seed", "four")
    assert ran.stderr == "decode: --seed needs a number from 0 on, got four\n"
    ran = run(decode, tiny_model, "--seed", -1)  # it was 2^64 - 1 once
    assert ran.stderr == "decode: --seed needs a number from 0 on, got -1\n"
    ran = run(decode, tiny_model, "--max-tokens", "all")
    assert ran.stderr == "decode: --max-tokens needs a number, got all\n"
    ran = run(decode, tiny_model, "--draft", 0)
    assert ran.stderr == "decode: length must be at least 1, got 0\n"


def test_the_program_of_the_docs(tmp_path, tiny_model):
    """docs/drafting.md has a whole program, with a drafter of one's own."""
    text = (SOURCE.parents[1] / "docs" / "drafting.md").read_text()
    [program] = re.findall(r"^```cpp\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "decode.cc").write_text(program)
    (tmp_path / "CMakeLists.txt").write_text((SOURCE / "CMakeLists.txt").read_text())
    build_project(tmp_path, tmp_path / "build")
    command = [tmp_path / "build" / "decode", tiny_model]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert ran.returncode == 0, ran.stderr
    runner = kvctl.ModelRunner.load(tiny_model)
    sampling = kvctl.Sampling(temperature=0.7)
    prompts = [[5, 9, 30, 7], [3, 3]]
    expected = kvctl.generate(runner, prompts, max_new_tokens=20, sampling=sampling, seed=3)
    assert texts(ran) == [text.tokens for text in expected]
