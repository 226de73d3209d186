"""The same random Llama written as GGUF (as llama.cpp's converter does) and as safetensors."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf
import ml_dtypes
import safetensors.numpy

from kvctl.models import RandomCheckpoint, open_checkpoint
from kvctl.models.weights import load_parameter
from tiny_model import tiny_config

CONFIG = tiny_config()
RANDOM = RandomCheckpoint(CONFIG, seed=5)
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYERS = [f"model.layers.{i}.{part}.weight" for i in range(2) for part in GGUF_NAMES]
NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *LAYERS]


def neighbouring_pairs(array, heads):
    """Order the rows of each head 0, d/2, 1, d/2 + 1, ...: for rotation of neighbours."""
    size = len(array) // heads
    order = np.arange(size).reshape(2, size // 2).T.ravel()
    return array.reshape(heads, size, -1)[:, order].reshape(array.shape)


def write_gguf(path, *, tied=False, extra=None, architecture="llama", **changes):
    metadata = {
        "embedding_length": 64,
        "feed_forward_length": 96,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "rope.dimension_count": 32,
        "context_length": 512,
        "vocab_size": 256,
        **changes,
    }
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    tensors = {
        "token_embd.weight": RANDOM.tensor(NAMES[0]),
        "output_norm.weight": RANDOM.tensor(NAMES[1]),
    }
    if not tied:
        tensors["output.weight"] = RANDOM.tensor("lm_head.weight")
    for name in LAYERS:
        _, _, index, part = name.removesuffix(".weight").split(".", 3)
        array = RANDOM.tensor(name)
        if part.endswith(("q_proj", "k_proj")):
            array = neighbouring_pairs(array, 4 if part.endswith("q_proj") else 2)
        tensors[f"blk.{index}.{GGUF_NAMES[part]}.weight"] = array
    for name, array in {**tensors, **(extra or {})}.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_huggingface(directory, dtype=np.float32):
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    for shard, names in enumerate((NAMES[:7], NAMES[7:])):
        arrays = {name: RANDOM.tensor(name).astype(dtype) for name in names}
        safetensors.numpy.save_file(arrays, directory / f"model-{shard}.safetensors")
    return directory


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
        ({"extra": {"rope_freqs.weight": np.ones(16, np.float32)}}, "scaled RoPE"),
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
