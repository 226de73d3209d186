"""Writes the tiny model's random weights as the files that people have: GGUF and safetensors."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf

from huggingface_files import write_config, write_shards
from kvctl.models import RandomCheckpoint
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


def write_gguf(
    path,
    *,
    tied=False,
    extra=None,
    architecture="llama",
    more=None,
    tokenizer=None,
    eos_token_id=2,
    kind=None,
    **changes,
):
    """Write the model; `more` are further keys of any type, `tokenizer` metadata of one.

    `kind` is GGUF's type of the matrices, by default float32.
    """
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
    for key, value in (more or {}).items():
        of = {str: "string", bool: "bool", float: "float32", int: "uint32"}[type(value)]
        getattr(writer, f"add_{of}")(f"llama.{key}", value)
    for key, value in (tokenizer or {}).items():
        getattr(writer, "add_array" if isinstance(value, list) else "add_string")(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("tokenizer.ggml.eos_token_id", eos_token_id)
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
        if kind is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_huggingface(directory, dtype=np.float32):
    """Write the model in two shards without an index."""
    write_config(directory)
    shards = {
        f"model-{shard}.safetensors": {name: RANDOM.tensor(name).astype(dtype) for name in names}
        for shard, names in enumerate((NAMES[:7], NAMES[7:]))
    }
    write_shards(directory, shards, index=False)
    return directory
