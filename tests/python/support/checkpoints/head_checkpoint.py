"""Heads on disk, and a target that they fit."""

from __future__ import annotations

import json

import head_files
from huggingface_files import encode
from kvctl.models import LlamaConfig


class Target:
    """A target of which only what heads take is there."""

    source = None

    def __init__(self, **changes):
        sizes = {
            "hidden_size": head_files.WIDTH,
            "intermediate_size": head_files.INSIDE,
            "num_hidden_layers": head_files.LAYERS,
            "num_attention_heads": head_files.HEADS,
            "num_key_value_heads": head_files.KEYS,
            "head_dim": head_files.DIM,
            "vocab_size": head_files.VOCAB,
            "context_window_size": 128,
        }
        self.config = LlamaConfig(**{**sizes, **changes})
        self.weights = head_files.target_weights()

    def shape(self, name):
        return self.weights[name].shape

    def tensor(self, name):
        return self.weights[name]


def write_head(directory, case, *, fields=None, tensors=None):
    """Write a case of head_files; a tensor or field of None is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    config, _ = head_files.CASES[case]
    config = {key: one for key, one in {**config, **(fields or {})}.items() if one is not None}
    (directory / "config.json").write_text(json.dumps(config))
    arrays = {**head_files.head_weights(case), **(tensors or {})}
    arrays = {name: one for name, one in arrays.items() if one is not None}
    for name, one in arrays.items():
        if not isinstance(one, tuple) and one.dtype == bool:
            arrays[name] = ("BOOL", one.tobytes(), one.shape)
        elif not isinstance(one, tuple) and str(one.dtype) == "int64":
            arrays[name] = ("I64", one.tobytes(), one.shape)
    (directory / "model.safetensors").write_bytes(encode(arrays))
    return directory
