"""A small target whose answers are collected."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from head_checkpoint import Target
from kvctl.heads.training.collect import Prompt, collect
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model

LAYERS = [1, 3, 4, 7]


@pytest.fixture(scope="session")
def checkpoint():
    return RandomCheckpoint(LlamaConfig(**vars(Target().config)), seed=3)


@pytest.fixture(scope="session")
def runner(checkpoint, tmp_path_factory):
    model = compile_model(checkpoint, tmp_path_factory.mktemp("target"), hidden_layers=LAYERS)
    return kvctl.ModelRunner.load(model, max_sequences=8)


@pytest.fixture(scope="session")
def prompts():
    rng = np.random.default_rng(6)
    return [rng.integers(0, 96, rng.integers(4, 12)).tolist() for _ in range(60)]


@pytest.fixture(scope="session")
def collection(runner, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    asked = [Prompt(prompt) for prompt in prompts]
    options = {"layers": LAYERS, "max_new_tokens": 30, "temperature": 0.3, "shard_size": 48}
    collect(runner, asked, folder, **options)
    return folder
