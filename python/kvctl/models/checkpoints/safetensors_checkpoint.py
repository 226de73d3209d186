"""A Llama model as Hugging Face stores it: config.json, tokenizer.json and safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", which safetensors asks it for)
import numpy as np

from .array import Array
from .config import LlamaConfig
from .tokenizer import chatml_template


class SafetensorsCheckpoint:
    """See `kvctl.models.Checkpoint`. Nothing is unpickled; pickled ``.bin`` files are not read.

    Raises
    ------
    FileNotFoundError
        If ``config.json`` or every safetensors file is missing.
    ValueError
        If a file is damaged or the model is not one that kvctl can build.
    """

    def __init__(self, directory: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._directory = directory
        self.config = LlamaConfig.from_huggingface(self._json("config.json"))
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{directory} has no .safetensors files")
        self._file_of: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(str(file), framework="numpy")
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged or truncated: {error}") from None
            self._file_of.update(dict.fromkeys(handle.keys(), handle))  # type: ignore[no-untyped-call]

    @property
    def source(self) -> Path:
        """See `Checkpoint`."""
        return self._directory

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> Array:
        """See `Checkpoint`."""
        return np.ascontiguousarray(self._file(name).get_tensor(name), dtype=np.float32)

    def tokenizer_json(self) -> str | None:
        """See `Checkpoint`."""
        path = self._directory / "tokenizer.json"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        config = self._json("config.json")
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        chat = {key: config[key] for key in keys if config.get(key) is not None}
        if (self._directory / "tokenizer_config.json").exists():
            template = self._json("tokenizer_config.json").get("chat_template")
            if isinstance(template, str):
                eos = chat.get("eos_token_id")
                chat.update(chatml_template(template, eos if isinstance(eos, int) else None))
        return chat

    def _file(self, name: str) -> Any:
        if name not in self._file_of:
            raise ValueError(f"{self._directory} has no weight '{name}': is a file missing?")
        return self._file_of[name]

    def _json(self, name: str) -> dict[str, Any]:
        path = self._directory / name
        if not path.exists():
            raise FileNotFoundError(f"{self._directory} has no {name}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object")
        return content
