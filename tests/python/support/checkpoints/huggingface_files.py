"""Writes Hugging Face checkpoints as people have them: shards, an index, any dtype."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}

CONFIG_JSON = {
    "architectures": ["LlamaForCausalLM"],
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
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def write_config(directory, **changes):
    """Write config.json; a change to None leaves the field out."""
    config = {key: value for key, value in {**CONFIG_JSON, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))


def encode(tensors, *, header=None):
    """Return the bytes of a safetensors file; a tensor may come as (dtype's name, bytes, shape)."""
    entries, data = {}, b""
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            dtype, raw, shape = tensor
        else:
            dtype, raw, shape = NAMES[str(tensor.dtype)], tensor.tobytes(), tensor.shape
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = (json.dumps(entries) if header is None else header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_shards(directory, shards, *, index=None):
    """Write files ({name: tensors}) and an index that gives every tensor to the first that has it.

    `index` replaces its weight_map; False writes none.
    """
    where = {}
    for file, tensors in shards.items():
        (directory / file).write_bytes(encode(tensors))
        for name in tensors:
            where.setdefault(name, file)
    if index is not False:
        document = {"metadata": {}, "weight_map": where if index is None else index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(document))
    return where


def tokenizer_json(count, *, added=0):
    """Return a byte-level tokenizer of `count` tokens, and `added` ones behind them."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"w{i}" for i in range(count))][:count]
    model = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_tokens([f"<added{i}>" for i in range(added)])
    return tokenizer.to_str()


def cast(array, dtype):
    """Return an array in one of the dtypes that checkpoints have."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
