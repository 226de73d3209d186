"""The text side of a transformers model: tokenizer, chat template, stops."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from ..text import ModelText


def load_text(name_or_dir: str) -> ModelText:
    """Read the tokenizer of a directory or of the hub.

    A tokenizer without ``tokenizer.json`` is one that transformers converts.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If a file is damaged.
    """
    if not name_or_dir:
        raise FileNotFoundError("the model was made without a name or directory with a tokenizer")
    directory = Path(name_or_dir)
    if (directory / "tokenizer.json").exists():
        return ModelText.from_huggingface(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{name_or_dir} has no tokenizer: {error}") from error
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return ModelText.from_huggingface(folder)


def stop_tokens_of(model: Any) -> frozenset[int]:
    """Return the end tokens that a model's generation config names."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])
