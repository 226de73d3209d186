"""kvctl/generate.h gives the texts of kvctl.generate, token for token."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import kvctl
from cmake_project import build_project
from kvctl.draft import ModelDrafter
from plain_model import compile_plain_model
from tiny_model import compile_tiny_model

SOURCE = Path(__file__).parents[3] / "cpp" / "programs"
RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(0, 12, n).tolist() for n in (5, 31, 1, 14, 22, 9)]
LENGTHS = [40, 25, 33, 1, 28, 36]
WORDS = ("lookup", "lookup branches=1", "suffix", "suffix branches=1", "model")


@pytest.fixture(scope="module")
def draft_model(tmp_path_factory):
    return compile_tiny_model(tmp_path_factory.mktemp("models") / "draft", seed=1)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    build = tmp_path_factory.mktemp("programs")
    build_project(SOURCE, build)
    return build


@dataclass
class Text:
    reason: str
    replayed: int
    accepted: int
    tokens: list[int]
    log_probs: list[float]


def texts(programs, model, prompts, *words, log_probs=False, **asked):
    """Generate in C++; `asked` is one value for all texts, or a list."""
    asked = {"seed": 0, "request_id": None, "temperature": 0.0, "top_k": 0, "repeat": 1.0, **asked}
    lines = []
    for i, prompt in enumerate(prompts):
        one = {k: v[i] if isinstance(v, list) else v for k, v in asked.items()}
        request_id = i if one["request_id"] is None else one["request_id"]
        head = (one["seed"], request_id, one["length"], one["temperature"])
        lines.append(" ".join(map(str, (*head, one["top_k"], one["repeat"], *prompt))))
    words = [word for some in words for word in some.split()]
    command = [programs / "generate_texts", model, *words]
    command += ["log_probs=1"] if log_probs else []
    ran = subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_WAIT_POLICY": "passive"},
    )
    assert ran.returncode == 0, ran.stderr
    found = []
    for line in ran.stdout.splitlines():
        reason, replayed, accepted, *rest = line.split()
        size = len(rest) // 2 if log_probs else len(rest)
        numbers = [float.fromhex(word) for word in rest[size:]]
        found.append(
            Text(reason, int(replayed), int(accepted), list(map(int, rest[:size])), numbers)
        )
    return found


def test_checks_in_cpp(programs, tiny_model, draft_model, tmp_path):
    environment = {
        "KVCTL_TEST_MODEL": str(tiny_model),
        "KVCTL_TEST_DRAFT_MODEL": str(draft_model),
        "KVCTL_TEST_FOLDER": str(tmp_path),
        "OMP_WAIT_POLICY": "passive",
    }
    ran = subprocess.run(
        [programs / "check_generate"], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("words", ["none", *WORDS])
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_texts_are_those_of_python(programs, tiny_model, draft_model, words, temperature):
    runner = kvctl.ModelRunner.load(tiny_model, max_total_tokens=2048, max_sequences=8)
    sampling = kvctl.Sampling(temperature=temperature, repetition_penalty=1.1)
    seeds = [3, 3, 4, 5, 5, 3]
    expected = kvctl.generate(
        runner, PROMPTS, max_new_tokens=LENGTHS, sampling=sampling, seed=seeds, log_probs=True
    )
    asked = {"temperature": temperature, "repeat": 1.1}
    options = (f"drafter={words}", f"draft_model={draft_model}")
    found = texts(
        programs, tiny_model, PROMPTS, *options, length=LENGTHS, seed=seeds, log_probs=True, **asked
    )
    assert [text.tokens for text in found] == [text.tokens for text in expected]
    assert [text.log_probs for text in found] == [text.log_probs for text in expected]
    assert {text.reason for text in found} == {"length"}
    if temperature == 0.0 and words in WORDS[:-1]:
        assert sum(text.accepted for text in found) > 0
    asked_for = {"length": LENGTHS, "seed": seeds, **asked}
    adapted = texts(programs, tiny_model, PROMPTS, *options, "adapt=1", **asked_for)
    assert [text.tokens for text in adapted] == [text.tokens for text in expected]
    i = 1
    alone = texts(
        programs,
        tiny_model,
        PROMPTS[i : i + 1],
        *options,
        length=LENGTHS[i],
        seed=seeds[i],
        request_id=i,
        **asked,
    )
    assert alone[0].tokens == expected[i].tokens


@pytest.mark.parametrize("words", ["none", *WORDS])
def test_a_cache_that_is_too_small_changes_no_text(programs, tiny_model, draft_model, words):
    asked = {"length": [60, 55, 70, 50, 40, 65], "temperature": [0.0, 1.0] * 3}
    roomy = texts(programs, tiny_model, PROMPTS, "max_total_tokens=2048", **asked)
    small = texts(
        programs,
        tiny_model,
        PROMPTS,
        f"drafter={words}",
        f"draft_model={draft_model}",
        "max_total_tokens=140 page_size=4 max_sequences=6",
        **asked,
    )
    assert [text.tokens for text in small] == [text.tokens for text in roomy]
    assert sum(text.replayed for text in small) > 0


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("block", "independent"),
        ("token_wise", "independent"),
        ("traversal", "without_replacement"),
        ("coupled", "coupled"),
    ],
)
def test_sampled_drafts_are_those_of_python(programs, tiny_model, draft_model, rule, how):
    """Under a rule that asks how drafts were drawn, the text depends on every one of them."""
    sampling = kvctl.Sampling(temperature=0.9, top_k=20)
    expected = kvctl.generate(
        kvctl.ModelRunner.load(tiny_model, max_total_tokens=2048, max_sequences=8),
        PROMPTS,
        max_new_tokens=LENGTHS,
        sampling=sampling,
        rule=rule,
        seed=9,
        drafter=ModelDrafter(
            kvctl.ModelRunner.load(draft_model, max_total_tokens=2048, max_sequences=8),
            length=4,
            how=how,
        ),
    )
    found = texts(
        programs,
        tiny_model,
        PROMPTS,
        f"drafter=model how={how} rule={rule} draft_model={draft_model}",
        "max_total_tokens=2048 draft_tokens=2048 max_sequences=8",
        length=LENGTHS,
        seed=9,
        temperature=0.9,
        top_k=20,
    )
    assert [text.tokens for text in found] == [text.tokens for text in expected]
    accepted = [sum(text.statistics.accepted) for text in expected]
    assert [text.accepted for text in found] == accepted
    assert sum(accepted) > 0


def test_stop_tokens_are_those_of_python(programs, tiny_model):
    runner = kvctl.ModelRunner.load(tiny_model)
    stop = kvctl.generate(runner, PROMPTS[0], max_new_tokens=20).tokens[12]
    expected = kvctl.generate(runner, PROMPTS, max_new_tokens=60, stop=[stop])
    found = texts(programs, tiny_model, PROMPTS, f"drafter=lookup stop={stop}", length=60)
    assert [text.tokens for text in found] == [text.tokens for text in expected]
    assert [text.reason for text in found] == [text.finish_reason for text in expected]
    assert found[0].reason == "stop_token"


@pytest.mark.parametrize("words", ["none", "lookup branches=1", "suffix", "model"])
def test_a_sliding_window_has_no_end(programs, tmp_path, draft_model, words):
    directory = compile_plain_model(
        tmp_path / "model", context_window_size=-1, sliding_window_size=20, attention_sink_size=4
    )
    sampling = [kvctl.Sampling(temperature=t) for t in (0.0, 0.8) * 3]
    expected = kvctl.generate(
        kvctl.ModelRunner.load(directory, max_total_tokens=1024, max_sequences=6),
        PROMPTS,
        max_new_tokens=60,
        sampling=sampling,
        seed=2,
    )
    found = texts(
        programs,
        directory,
        PROMPTS,
        f"drafter={words} draft_model={draft_model}",
        "max_total_tokens=120 page_size=4 max_sequences=5 prefill_chunk_size=16",
        length=60,
        seed=2,
        temperature=[0.0, 0.8] * 3,
    )
    assert [text.tokens for text in found] == [text.tokens for text in expected]


@pytest.mark.parametrize("emit_steps", [True, False])
@pytest.mark.parametrize("kind", ["delta", "hybrid"])
def test_models_with_recurrent_layers(programs, recurrent_models, kind, emit_steps):
    directory = recurrent_models(kind, emit_steps=emit_steps)
    sampling = [kvctl.Sampling(temperature=t) for t in (0.0, 1.0) * 3]
    expected = kvctl.generate(
        kvctl.ModelRunner.load(directory, max_total_tokens=1024, max_sequences=6),
        PROMPTS,
        max_new_tokens=40,
        sampling=sampling,
        seed=2,
    )
    asked = {"length": 40, "seed": 2, "temperature": [0.0, 1.0] * 3}
    # What has to run again is beside what it replaces for a while.
    total = 256 if emit_steps else 1024
    for words in ("none", "lookup", "suffix", f"model draft_model={directory}"):
        sizes = f"max_total_tokens={total} page_size=4 max_sequences=5 draft_tokens=1024"
        found = texts(programs, directory, PROMPTS, f"drafter={words} {sizes}", **asked)
        assert [text.tokens for text in found] == [text.tokens for text in expected]
        if words.startswith("model"):
            assert sum(text.accepted for text in found) > 50


# The joint distribution of three tokens, of two models with four.

PROMPT = [1, 3, 0, 2]
TEXTS = 16000


@pytest.fixture(scope="module")
def four_tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    changes = {"vocab_size": 4}
    return [compile_tiny_model(folder / str(seed), seed=seed, changes=changes) for seed in (0, 1)]


def joint(model, temperature):
    """Return the probability of each three tokens behind the prompt."""
    runner = kvctl.ModelRunner.load(model)
    probs = {}
    for path in product(range(4), repeat=3):
        runner.cache.add_sequence(0)
        logits = np.from_dlpack(runner.forward([0], [[*PROMPT, *path]])).astype(np.float64)
        runner.cache.remove_sequence(0)
        rows = np.exp(logits / temperature)
        rows /= rows.sum(axis=1, keepdims=True)
        probs[path] = np.prod([rows[len(PROMPT) - 1 + i, token] for i, token in enumerate(path)])
    return probs


def statistic(found, expected):
    """Chi-square per degree of freedom; cells that are expected rarely are taken together."""
    counts = Counter(tuple(text.tokens) for text in found)
    cells = [(counts[path], p * TEXTS) for path, p in expected.items()]
    large = [cell for cell in cells if cell[1] >= 10]
    rest = np.sum([cell for cell in cells if cell[1] < 10], axis=0)
    large += [rest] if np.ndim(rest) and rest[1] >= 10 else []
    assert len(large) > 20
    return sum((n - e) ** 2 / e for n, e in large) / (len(large) - 1)


@pytest.mark.parametrize("rule", ["block", "token_wise"])
def test_the_joint_distribution_of_three_tokens(programs, four_tokens, rule):
    target, draft = four_tokens
    expected = joint(target, 0.5)
    asked = {"length": 3, "temperature": 0.5, "seed": 17}
    options = f"drafter=model how=independent rule={rule} draft_model={draft} max_sequences=64"
    found = texts(programs, target, [PROMPT] * TEXTS, options, "length=2", **asked)
    assert sum(text.accepted for text in found) > TEXTS / 4
    assert statistic(found, expected) < 1.6
    lying = texts(programs, target, [PROMPT] * TEXTS, options, "length=2 lie=1", **asked)
    assert statistic(lying, expected) > 8
