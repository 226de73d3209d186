"""A Llama model in one GGUF file, as llama.cpp writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..._ffi.untrusted import reading
from .array import Array
from .config import LlamaConfig
from .gguf_file import GGUFFile
from .tokenizer import chatml_template, tokenizer_from_gguf

# Hugging Face's names, and llama.cpp's.
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class GGUFCheckpoint:
    """See `kvctl.models.Checkpoint`.

    Quantised tensors are dequantised exactly as the ``gguf`` package defines them.

    Raises
    ------
    ValueError
        If the file is damaged, or not a Llama model that kvctl can build.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GGUFFile(path)
        with reading(str(path)):
            self.config = self._read_config()

    @property
    def source(self) -> Path:
        """See `Checkpoint`."""
        return self._path

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return self._file.shape(_gguf_name(name))

    def tensor(self, name: str) -> Array:
        """See `Checkpoint`."""
        array = self._file.tensor(_gguf_name(name))
        # llama.cpp rotates neighbouring pairs: its converter interleaves the halves of each head.
        if name.endswith("q_proj.weight"):
            return _uninterleave(array, self.config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return _uninterleave(array, self.config.num_key_value_heads)
        return array

    def tokenizer_json(self) -> str | None:
        """See `Checkpoint`. A ``tokenizer.json`` beside the file comes first."""
        beside = self._path.with_name("tokenizer.json")
        if beside.exists():
            return beside.read_text(encoding="utf-8")
        return tokenizer_from_gguf(self._file.metadata)

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        metadata = self._file.metadata
        chat = {
            f"{name}_token_id": metadata[f"tokenizer.ggml.{key}_token_id"]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
            if f"tokenizer.ggml.{key}_token_id" in metadata
        }
        template = metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            chat.update(chatml_template(template, chat.get("eos_token_id")))
        return chat

    def _read_config(self) -> LlamaConfig:
        metadata = self._file.metadata
        architecture = metadata.get("general.architecture")
        if architecture != "llama":
            raise ValueError(
                f"{self._path} holds a model of type '{architecture}'; kvctl compiles 'llama'"
            )

        def number(key: str, default: Any = None) -> Any:
            value = metadata.get(f"llama.{key}", default)
            if not isinstance(value, int | float):
                raise ValueError(f"{self._path} lacks the number llama.{key}")
            return value

        scaling = metadata.get("llama.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self._file:
            raise ValueError(f"{self._path}: kvctl does not build models with scaled RoPE")
        biased = [name for name in self._file.tensor_names if name.endswith(".bias")]
        if biased:
            raise ValueError(f"{self._path}: kvctl does not build models with biases ({biased[0]})")
        hidden, heads = number("embedding_length"), number("attention.head_count")
        head_dim = number("attention.key_length", hidden // max(1, int(heads)))
        if number("rope.dimension_count", head_dim) != head_dim:
            raise ValueError(f"{self._path}: kvctl rotates whole heads, not parts of them")
        return LlamaConfig(
            hidden_size=hidden,
            intermediate_size=number("feed_forward_length"),
            num_hidden_layers=number("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=number("vocab_size", len(metadata.get("tokenizer.ggml.tokens", []))),
            # Stored as float32: the shortest decimal that means it is what the authors wrote.
            rms_norm_eps=float(str(np.float32(number("attention.layer_norm_rms_epsilon")))),
            rope_theta=float(number("rope.freq_base", 10000.0)),
            tie_word_embeddings="output.weight" not in self._file,
            context_window_size=number("context_length"),
        )


def _gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        index, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{index}.{_NAMES.get(part, part)}.{suffix}"
    return f"{_NAMES.get(stem, stem)}.{suffix}"


def _uninterleave(array: Array, heads: int) -> Array:
    rows, cols = array.shape
    pairs = array.reshape(heads, rows // heads // 2, 2, cols)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, cols)
