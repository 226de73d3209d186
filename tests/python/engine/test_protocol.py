"""The compiled model's runner does what the protocol says."""

from __future__ import annotations

import pytest

import kvctl
from runner_conformance import RunnerConformance
from tiny_model import compile_tiny_model


class TestModelRunner(RunnerConformance):
    @pytest.fixture
    def runner(self, directory):
        return kvctl.ModelRunner.load(directory, max_sequences=5)


class TestModelRunnerInChunks(RunnerConformance):
    @pytest.fixture
    def runner(self, tiny_model):
        return kvctl.ModelRunner.load(tiny_model, max_sequences=5, prefill_chunk_size=20)


@pytest.fixture(scope="module")
def hidden_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("conformance") / "m"
    return compile_tiny_model(directory, hidden_layers=[0], exit_layers=[1])


class TestModelRunnerWithHiddenStates(RunnerConformance):
    @pytest.fixture
    def runner(self, hidden_model):
        return kvctl.ModelRunner.load(hidden_model, max_sequences=5)


class TestModelRunnerWithHiddenStatesInChunks(RunnerConformance):
    @pytest.fixture
    def runner(self, hidden_model):
        return kvctl.ModelRunner.load(hidden_model, max_sequences=5, prefill_chunk_size=14)


def test_the_demo_model_knows_its_text(smollm2):
    runner = kvctl.ModelRunner.load(smollm2)
    assert runner.text.has_template
    assert runner.stop_tokens == runner.text.stop_tokens != frozenset()
    assert (runner.context_window_size, runner.sliding_window_size) == (8192, None)


def test_stop_tokens_without_a_tokenizer(tiny_model):
    runner = kvctl.ModelRunner.load(tiny_model)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        runner.text  # noqa: B018
    assert runner.stop_tokens == frozenset()
