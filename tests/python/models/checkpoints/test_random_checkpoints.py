"""Random checkpoints, whole and wrong: the very weights, or a sentence that names what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf

from checkpoint_files import GGUF_NAMES, NAMES, RANDOM, write_gguf
from gguf_files import split
from huggingface_files import CONFIG_JSON, cast, write_config, write_shards
from kvctl.models import open_checkpoint

FLOATS = ["float64", "float32", "float16", "bfloat16"]
TIED = [name for name in NAMES if name != "lm_head.weight"]
STRAYS = ["model-00001-of-00009.safetensors", "a.safetensors", "zz.safetensors", "optimizer.bin"]
EXTRA = ["q_proj.bias", "q_norm.weight", "weight_scale", "SCB", "qkv_proj.weight", "lora_A.weight"]


class Case:
    """A random checkpoint on disk; `fault` is a pattern of what must be said of it, or None."""

    def __init__(self, rng, directory):
        self.rng, self.directory, self.fault = rng, directory, None
        self.tied = rng.random() < 0.3
        self.names = list(TIED if self.tied else NAMES)
        self.config = {"tie_word_embeddings": bool(self.tied)}
        self.arrays = {
            name: cast(RANDOM.tensor(name), rng.choice(FLOATS))
            for name in rng.permutation(self.names).tolist()
        }
        count = int(rng.integers(1, 6))
        self.shards = {f"model-{i + 1:05}-of-{count:05}.safetensors": {} for i in range(count)}
        for name, array in self.arrays.items():
            self.shards[str(rng.choice(list(self.shards)))][name] = array
        self.index = {name: file for file, part in self.shards.items() for name in part}
        self.wanted = {name: array.astype(np.float32) for name, array in self.arrays.items()}

    def damage(self):
        """Make one thing wrong, or none."""
        faults = [None, self.extra, self.dtype, self.moved, self.forgotten, self.missing_file]
        faults += [self.missing_weight, self.settings, self.shape_of_nothing]
        fault = faults[self.rng.integers(0, len(faults))]
        if fault is not None:
            fault(str(self.rng.choice(self.names)))

    def extra(self, name):
        other = f"{name.removesuffix('.weight')}.{self.rng.choice(EXTRA)}"
        file = self.index[name]
        self.shards[file][other] = np.ones(3, np.float32)
        self.index[other] = file
        self.fault = rf"1 tensor \('{other}'\) .* does not take"

    def dtype(self, name):
        kind = str(self.rng.choice(["I8", "U8", "F8_E4M3", "F8_E5M2", "BOOL"]))
        shape = self.wanted[name].shape
        self.shards[self.index[name]][name] = (kind, bytes(int(np.prod(shape))), shape)
        self.fault = rf"'{name}' is {kind}; kvctl reads"

    def moved(self, name):
        others = [file for file in self.shards if file != self.index[name]]
        if others:
            self.index[name] = str(self.rng.choice(others))
            self.fault = rf"{self.index[name]} (lacks the tensor '{name}'|is missing)"

    def forgotten(self, name):
        del self.index[name]
        if len(set(self.index.values())) == len([s for s in self.shards.values() if s]):
            self.fault = rf"holds '{name}', of which"
        else:  # its file holds nothing else, and is a stray now
            self.fault = rf"lacks 1 tensor \('{name}'\)"

    def missing_file(self, name):
        self.shards[self.index[name]] = None
        self.fault = rf"{self.index[name]} is missing"

    def missing_weight(self, name):
        del self.shards[self.index.pop(name)][name]
        self.fault = rf"(lacks 1 tensor \('{name}'\)|weight_map names no)"

    def settings(self, name):
        changes = {
            "quantization_config": {"bits": 4},
            "attention_bias": True,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
            "num_hidden_layers": 3,
            "head_dim": 20,
            "hidden_act": "relu",
        }
        field = str(self.rng.choice(list(changes)))
        self.config[field] = changes[field]
        self.fault = field if field != "num_hidden_layers" else r"lacks 9 tensors"

    def shape_of_nothing(self, name):
        self.shards[self.index[name]][name] = ("F32", bytes(12), self.wanted[name].shape)
        self.fault = rf"{self.index[name]} is damaged or truncated: tensor '{name}'"

    def strays(self):
        """Add files that must not be read."""
        for file in self.rng.choice(STRAYS, self.rng.integers(0, 3), replace=False).tolist():
            noise = {name: np.zeros((2, 2), np.float32) for name in self.names[:3]}
            if file not in self.shards:
                write_shards(self.directory, {file: noise}, index=False)
        # A copy of what the index gives to another file.
        files = [file for file, part in self.shards.items() if part]
        name = str(self.rng.choice(self.names))
        for file in files:
            if self.rng.random() < 0.3 and self.index.get(name, file) != file:
                part = self.shards[file]
                self.shards[file] = {name: np.zeros(2, np.float32), **part}

    def write(self):
        write_config(self.directory, **self.config)
        parts = {file: part for file, part in self.shards.items() if part is not None}
        write_shards(self.directory, parts, index=self.index)


@pytest.mark.parametrize("seed", range(150))
def test_safetensors(tmp_path, seed):
    case = Case(np.random.default_rng([seed, 71]), tmp_path)
    case.damage()
    case.strays()
    case.write()
    if case.fault is not None:
        with pytest.raises((ValueError, FileNotFoundError), match=case.fault):
            open_checkpoint(tmp_path)
        return
    checkpoint = open_checkpoint(tmp_path)
    for name, wanted in case.wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), wanted, err_msg=name)


def gguf_name(name):
    if not name.startswith("model.layers."):
        tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
        return tops.get(name.removesuffix(".weight"), "output") + ".weight"
    _, _, index, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[part]}.weight"


@pytest.mark.parametrize("seed", range(60))
def test_gguf(tmp_path, seed):
    """Split or not, scaled or not, with a tensor too many or too few."""
    rng = np.random.default_rng([seed, 72])
    scales = [
        ({}, 1.0, None),
        ({"rope.scaling.factor": 2.0}, 0.5, None),
        ({"rope.scale_linear": 8.0}, 0.125, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, 1.0, None),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
            0,
            "scaled RoPE of type 'yarn'",
        ),
    ]
    more, scale, fault = scales[rng.integers(0, len(scales))]
    extra = {}
    if rng.random() < 0.2:
        extra = {"blk.1.attn_k_norm.weight": np.ones(32, np.float32)}
        fault = fault or r"1 tensor \('blk\.1\.attn_k_norm\.weight'\)"
    path = write_gguf(tmp_path / "m.gguf", more=more, extra=extra, tied=rng.random() < 0.3)
    if rng.random() < 0.6:
        present = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
        last = rng.choice(present, rng.integers(1, 5), replace=False).tolist()
        parts = split(path, last=last)
        path = parts[rng.integers(0, 3)]
        gone = parts[rng.integers(0, 3)]
        if gone != path and rng.random() < 0.3:
            gone.unlink()
            fault = rf"missing: {gone.name}"
    if fault is not None:
        with pytest.raises((ValueError, FileNotFoundError), match=fault):
            open_checkpoint(path)
        return
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope_scale == scale
    for name in TIED if checkpoint.config.tie_word_embeddings else NAMES:
        np.testing.assert_array_equal(checkpoint.tensor(name), RANDOM.tensor(name), err_msg=name)


HOSTILE = [None, True, 0, -1, 1 << 70, 1.5, float("nan"), "x", "", [], [1], {}, {"a": 1}, "\ud800"]


@pytest.mark.parametrize("seed", range(100))
def test_config_json_of_any_values(tmp_path, seed):
    """The plain model where the change means nothing; else a sentence with the file's name."""
    rng = np.random.default_rng([seed, 73])
    fields = [*CONFIG_JSON, "rope_scaling", "rope_parameters", "rope_theta", "tie_word_embeddings"]
    config = dict(CONFIG_JSON)
    for field in rng.choice(fields, rng.integers(1, 4), replace=False).tolist():
        config[field] = HOSTILE[rng.integers(0, len(HOSTILE))]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_shards(tmp_path, {"model.safetensors": {n: RANDOM.tensor(n) for n in NAMES}}, index=False)
    try:
        open_checkpoint(tmp_path)
    except ValueError as error:
        assert str(tmp_path) in str(error), error
        assert "Error:" not in str(error), error
