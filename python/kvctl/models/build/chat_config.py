"""MLC's ``mlc-chat-config.json``: what a directory says of its model and of conversing with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ...text import ModelText, Tokenizer
from ..checkpoints.weights import Checkpoint
from .asked import compiler_id

_FIELDS = (
    "model_type",
    "quantization",
    "context_window_size",
    "sliding_window_size",
    "attention_sink_size",
    "prefill_chunk_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
)


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, by which loading finds a damaged one."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def make_chat_config(
    checkpoint: Checkpoint,
    chat: dict[str, Any],
    metadata: dict[str, Any],
    library: Path,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Return the contents of the file.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    chat : dict
        Its `checked_chat`.
    metadata : dict
        What its library says of itself.
    library : Path
        The library, whose checksum the file holds.
    asked : dict
        What it was compiled from and for, by `asked_for`.
    """
    return {
        "version": "0.1.0",
        **{field: metadata[field] for field in _FIELDS},
        "model_config": checkpoint.config.to_mlc(),
        "vocab_size": checkpoint.config.vocab_size,
        "temperature": 1.0,
        "top_p": 1.0,
        "tokenizer_files": ["tokenizer.json"],
        "kvctl": {"library_md5": file_md5(library), "asked": asked, "compiler": compiler_id()},
        **chat,
    }


def checked_chat(checkpoint: Checkpoint, tokenizer: str | None) -> dict[str, Any]:
    """Return what a checkpoint says of conversing, its token ids being the model's.

    With a tokenizer, all that ends the model's turn is there together, as `kvctl.text.ModelText`
    finds it. An id of -1, as some converters write, is no token. A padding token may be any number:
    kvctl does not pad.

    Raises
    ------
    ValueError
        If an id is no integer, or none of the model's.
    """
    size = checkpoint.config.vocab_size
    where = "the checkpoint" if checkpoint.source is None else str(checkpoint.source)
    try:
        chat = {field: value for field, value in checkpoint.chat().items() if not _is_none(value)}
    except ValueError as error:
        named = checkpoint.source is not None and str(error).startswith(where)
        raise error if named else ValueError(f"{where}: {error}") from None
    pad = chat.get("pad_token_id")
    if type(pad) is int and not 0 <= pad < size:
        del chat["pad_token_id"]
    template = chat.get("conv_template")
    stops = template.get("stop_token_ids") if isinstance(template, dict) else None
    for field, value in (*chat.items(), ("stop_token_ids", stops)):
        if value is None or not field.endswith(("_token_id", "_token_ids")):
            continue
        for one in value if isinstance(value, list) else [value]:
            if type(one) is not int or not 0 <= one < size:
                raise ValueError(
                    f"{where}: {field} must be a token from 0 to {size - 1}, not {one!r:.60}"
                )
    if tokenizer is None:
        return chat
    fields = ModelText(Tokenizer(tokenizer, name=f"the tokenizer of {where}"), chat).to_fields()
    # A tokenizer may have more tokens than the model, which never come.
    fields["stop_token_ids"] = [one for one in fields["stop_token_ids"] if one < size]
    return fields


def _is_none(value: Any) -> bool:
    return type(value) is int and value == -1
