"""Weights, ids and tokenizers that are damaged are found when a model is compiled, by name."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from checkpoint_files import NAMES, RANDOM, write_gguf
from gguf_files import byte_level_metadata
from huggingface_files import tokenizer_json, write_config, write_shards
from kvctl.models import compile_model
from kvctl.models.build.saved import converted_parameter
from kvctl.models.graph.layers import ParamSpec

WEIGHTS = {name: RANDOM.tensor(name) for name in NAMES}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    write_config(path)
    write_shards(path, {"model.safetensors": WEIGHTS}, index=False)
    return path


def refuse(source, tmp_path, message, **options):
    with pytest.raises(ValueError, match=message):
        compile_model(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite(directory, tmp_path, value, name):
    damaged = WEIGHTS[name].copy()
    damaged.flat[-1] = value
    write_shards(directory, {"model.safetensors": {**WEIGHTS, name: damaged}}, index=False)
    refuse(directory, tmp_path, rf"weight '{name}' is not finite")


def test_float64_beyond_float32(directory, tmp_path):
    name = "model.norm.weight"
    damaged = WEIGHTS[name].astype(np.float64) * 1e300
    write_shards(directory, {"model.safetensors": {**WEIGHTS, name: damaged}}, index=False)
    refuse(directory, tmp_path, rf"weight '{name}' is not finite")


def test_weights_beyond_the_type_that_they_are_saved_in(directory, tmp_path):
    name = "model.layers.0.mlp.down_proj.weight"
    damaged = WEIGHTS[name].copy()
    damaged[0, 0] = 3.4e38
    write_shards(directory, {"model.safetensors": {**WEIGHTS, name: damaged}}, index=False)
    refuse(directory, tmp_path, rf"'{name}' is beyond the range of its type", dtype="bfloat16")


def test_float16_of_cuda_is_checked_as_it_is_saved():
    param = ParamSpec("w", (3,), "float16", None)
    big = np.full(3, 1e6, np.float32)
    with pytest.raises(ValueError, match="weight 'w' is beyond the range of its type"):
        converted_parameter(big, param, RANDOM)


@pytest.mark.parametrize("value", ["2", NAN, 2.0, -2, 256, True, [2, "x"], [2, 300], {"a": 2}])
@pytest.mark.parametrize("field", ["eos_token_id", "bos_token_id"])
def test_ids_that_are_no_tokens(directory, tmp_path, field, value):
    write_config(directory, **{field: value})
    refuse(
        directory, tmp_path, rf"{directory}.*{field} must be a token (from 0 to 255|id or a list)"
    )


def test_ids_of_minus_one_are_none(directory, tmp_path):
    write_config(directory, eos_token_id=-1, bos_token_id=-1)
    compile_model(directory, tmp_path / "out")
    chat = json.loads((tmp_path / "out/mlc-chat-config.json").read_text())
    assert not {"eos_token_id", "bos_token_id"} & set(chat)


@pytest.mark.parametrize("value", [-1, 256, 32000])
def test_padding_that_is_no_token_is_left_out(directory, tmp_path, value):
    write_config(directory, pad_token_id=value)
    compile_model(directory, tmp_path / "out")
    assert "pad_token_id" not in json.loads((tmp_path / "out/mlc-chat-config.json").read_text())


def test_ids_of_gguf(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", eos_token_id=700)
    refuse(path, tmp_path, "eos_token_id must be a token from 0 to 255, not 700")


DAMAGED = {
    "empty": "",
    "no JSON": "{",
    "cut short": tokenizer_json(256)[:-40],
    "another thing": "[1, 2]",
    "an empty object": "{}",
    "nested": '{"a":' * 100_000,
    "no tokens": json.dumps(
        {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    ),
    "a merge of nothing": json.dumps(
        {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}
    ),
    "a regex that is none": json.dumps(
        {
            "version": "1.0",
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(("},
                "behavior": "Isolated",
                "invert": False,
            },
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        }
    ),
    "a regex that explodes": json.dumps(
        {
            "version": "1.0",
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(a|a)+!"},
                "behavior": "Isolated",
                "invert": False,
            },
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        }
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_tokenizers(directory, tmp_path, kind):
    (directory / "tokenizer.json").write_text(DAMAGED[kind])
    refuse(directory, tmp_path, rf"the tokenizer of {directory} (is no tokenizer|has no token)")


def test_a_tokenizer_that_is_no_text(directory, tmp_path):
    (directory / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    refuse(directory, tmp_path, r"tokenizer\.json is damaged: it is not UTF-8 text")


def test_a_tokenizer_beside_a_gguf(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tokenizer=byte_level_metadata(256))
    (tmp_path / "tokenizer.json").write_text("{}")
    refuse(path, tmp_path, r"tokenizer\.json is no tokenizer")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"]
)
def test_pipes_and_devices_are_refused_at_once(directory, tmp_path, name):
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    refuse(directory, tmp_path, rf"{name} is not a regular file")
    (directory / name).unlink()
    (directory / name).symlink_to("/dev/zero")
    refuse(directory, tmp_path, rf"{name} is not a regular file")


def test_no_compiler(directory, tmp_path, monkeypatch):
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"compiling needs a C\+\+ compiler: put g\+\+"):
        compile_model(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
