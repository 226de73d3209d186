"""The same random Llama written as GGUF (as llama.cpp's converter does) and as safetensors."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import ml_dtypes

from checkpoint_files import CONFIG, NAMES, RANDOM, write_gguf, write_huggingface
from kvctl.models import open_checkpoint
from kvctl.models.checkpoints import weights
from kvctl.models.checkpoints.weights import load_parameter


def assert_same_weights(checkpoint, *, rounded_to=np.float32):
    assert checkpoint.config == CONFIG
    for name in NAMES:
        assert checkpoint.shape(name) == RANDOM.shape(name)
        wanted = RANDOM.tensor(name).astype(rounded_to).astype(np.float32)
        np.testing.assert_array_equal(checkpoint.tensor(name), wanted, err_msg=name)
    assert checkpoint.chat()["eos_token_id"] == 2


def test_gguf(tmp_path):
    assert_same_weights(open_checkpoint(write_gguf(tmp_path / "m.gguf")))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors(tmp_path, dtype):
    assert_same_weights(open_checkpoint(write_huggingface(tmp_path, dtype)), rounded_to=dtype)


def test_fused_parameters_stack_their_parts():
    qkv = load_parameter(RANDOM, "model.layers.0.self_attn.qkv_proj.weight")
    parts = [RANDOM.tensor(f"model.layers.0.self_attn.{p}_proj.weight") for p in "qkv"]
    np.testing.assert_array_equal(qkv, np.concatenate(parts))


def test_a_tied_output_layer_is_the_embedding(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tied=True))
    assert checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(
        load_parameter(checkpoint, "lm_head.weight"), RANDOM.tensor("model.embed_tokens.weight")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma"}, "of type 'gemma'"),
        ({"extra": {"rope_freqs.weight": np.ones(7, np.float32)}}, "and 7 factors for them"),
        ({"extra": {"rope_freqs.weight": np.zeros(16, np.float32)}}, "must be positive"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(128, np.float32)}}, r"biases \(blk.0.attn_q.bias"),
        ({"rope.dimension_count": 16}, "rotates whole heads"),
        ({"attention.head_count_kv": 3}, "4 query heads cannot share 3"),
    ],
)
def test_gguf_models_that_kvctl_cannot_build(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", **options))


def test_a_weight_of_another_shape_is_refused(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", feed_forward_length=97))
    with pytest.raises(ValueError, match=r"is \(96, 64\), where .* \(97, 64\)"):
        load_parameter(checkpoint, "model.layers.0.mlp.gate_up_proj.weight")


def test_damaged_safetensors(tmp_path):
    file = write_huggingface(tmp_path) / "model-1.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model-1\.safetensors is damaged or truncated"):
            open_checkpoint(tmp_path)


def test_nested_json(tmp_path):
    write_huggingface(tmp_path)
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        open_checkpoint(tmp_path)


def test_a_missing_file_of_several(tmp_path):
    (write_huggingface(tmp_path) / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="is a file missing"):
        open_checkpoint(tmp_path).tensor(NAMES[-1])


def test_directories_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match="is no JSON"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    directory = write_huggingface(tmp_path)
    for file in directory.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors"):
        open_checkpoint(directory)


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "random"])
def test_parameters_come_in_pieces(tmp_path, kind, monkeypatch):
    """A few rows at a time, fused weights among them, and never more than the limit."""
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 5 * 4 * 64)
    if kind == "random":
        checkpoint = RANDOM
    elif kind == "gguf":
        checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf"))
    else:
        checkpoint = open_checkpoint(write_huggingface(tmp_path))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.qkv_proj.weight"):
        pieces = list(weights.parameter_chunks(checkpoint, name))
        np.testing.assert_array_equal(np.concatenate(pieces), load_parameter(checkpoint, name))
        assert kind == "random" or max(map(len, pieces)) == 5
