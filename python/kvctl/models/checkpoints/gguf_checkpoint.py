"""A Llama model in GGUF, as llama.cpp writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..._ffi.untrusted import read_text, reading
from ...text.sources import fields_of_gguf
from .array import Array
from .config import LlamaConfig
from .gguf_config import read_gguf_config
from .gguf_parts import GGUFParts
from .tokenizer import tokenizer_from_gguf
from .vocabulary import check_same_vocabulary
from .weight_names import check_consumed, check_present, weight_names

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

    Parameters
    ----------
    path : Path
        The file, or any part of one that is split.

    Raises
    ------
    FileNotFoundError
        If a part is missing.
    ValueError
        If a file is damaged, or the model is not one that kvctl can build: every tensor is one
        that it takes, of a type that kvctl reads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GGUFParts(path)
        with reading(str(path)):
            self.config = self._read_config()
        wanted = [_gguf_name(name) for name in weight_names(self.config)]
        check_present(wanted, self._file, str(path))
        self._file.check_types(wanted)
        check_consumed(wanted, self._file.tensor_names, str(path))

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
        """See `Checkpoint`. A ``tokenizer.json`` beside the file comes first.

        Raises
        ------
        ValueError
            If that is another model's, or the file's own is of a kind that kvctl cannot rebuild.
        """
        beside = self._path.with_name("tokenizer.json")
        if not beside.exists():
            metadata = self._file.metadata
            if metadata.get("tokenizer.ggml.model") is None:
                return None
            return tokenizer_from_gguf(metadata, str(self._path))
        text = read_text(beside)
        with reading(str(self._path)):
            check_same_vocabulary(text, str(beside), self._file.metadata, str(self._path))
        return text

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return fields_of_gguf(self._file.metadata)

    def _read_config(self) -> LlamaConfig:
        if "rope_freqs.weight" in self._file:
            raise ValueError(f"{self._path}: kvctl does not build models with scaled RoPE")
        biased = [name for name in self._file.tensor_names if name.endswith(".bias")]
        if biased:
            raise ValueError(f"{self._path}: kvctl does not build models with biases ({biased[0]})")
        tied = "output.weight" not in self._file
        return read_gguf_config(self._file.metadata, tied=tied, where=str(self._path))


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
