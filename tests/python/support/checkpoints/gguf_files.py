"""Splits GGUF files as llama.cpp's tool does, and writes metadata of tokenizers."""

from __future__ import annotations

import gguf
import tokenizers


def split(path, *, last, count=None):
    """Split a file into three parts, of which the third holds the tensors named `last`."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    rest = [name for name in tensors if name not in last]
    shares = [rest[: len(rest) // 2], rest[len(rest) // 2 :], last]
    parts = []
    for number, names in enumerate(shares):
        parts.append(path.with_name(f"{path.stem}-{number + 1:05}-of-00003.gguf"))
        writer = gguf.GGUFWriter(str(parts[-1]), "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if key.startswith(("GGUF.", "general.architecture")):
                    continue
                kind = field.types[0]
                sub = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), kind, sub_type=sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(tensors) if count is None else count)
        for name in names:
            writer.add_tensor(name, tensors[name].data, raw_dtype=tensors[name].tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path.unlink()
    return parts


def byte_level_metadata(count, *, padding=()):
    """Return the metadata of a byte-level tokenizer of `count` tokens, some of them padding."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"w{i}" for i in range(count))][:count]
    tokens[-1] = "ab"
    types = [1] * count
    for index in padding:
        tokens[index], types[index] = f"[PAD{index}]", 5
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["a b"],
    }
