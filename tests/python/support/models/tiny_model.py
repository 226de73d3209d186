"""The smallest Llama that has everything: two layers, grouped-query attention, an output layer."""

from __future__ import annotations

import pytest


def tiny_config(**changes):
    """Return its LlamaConfig; skips the test where TVM's compiler is missing."""
    models = pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    numbers = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
        "context_window_size": 512,
    }
    return models.LlamaConfig(**{**numbers, **changes})


def compile_tiny_model(directory, *, seed=0, changes=None, **options):
    """Compile it with random weights; takes a second (seven with cache="tvm")."""
    config = tiny_config(**(changes or {}))
    from kvctl.models import RandomCheckpoint, compile_model

    return compile_model(RandomCheckpoint(config, seed=seed), directory, **options)
