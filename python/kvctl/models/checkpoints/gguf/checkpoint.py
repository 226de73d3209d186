"""A model in GGUF, as llama.cpp writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...._ffi.untrusted import read_text, reading
from ....text.sources import fields_of_gguf
from ...architectures.source import Transposed
from ..file_checkpoint import FileCheckpoint
from ..source_weights import SourceWeights
from ..tokens.tokenizer import tokenizer_from_gguf
from ..tokens.vocabulary import check_same_vocabulary
from ..weight_names import check_consumed, check_present
from .blocks import Bytes, to_blocks
from .config import gguf_architecture, read_gguf_config, rope_tensors
from .parts import GGUFParts


class GGUFCheckpoint(FileCheckpoint):
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
        self._source = path
        self._file = GGUFParts(path)
        with reading(str(path)):
            architecture = gguf_architecture(self._file.metadata, str(path))
            factors = [name for name in rope_tensors(architecture) if name in self._file]
            self._weights = SourceWeights(
                read_gguf_config(
                    self._file.metadata,
                    tied="output.weight" not in self._file,
                    where=str(path),
                    factors=lambda name: self._file.tensor(name) if name in factors else None,
                ),
                architecture.gguf,
                self._file,
                where=str(path),
            )
        self.config = self._weights.config
        wanted = self._weights.tensor_names()
        check_present(wanted, self._file, str(path))
        self._file.check_types(wanted)
        known = {*wanted, *factors}
        for name in self._file.tensor_names:
            if name.endswith(".bias") and name not in known:
                raise ValueError(f"{path}: kvctl does not build such models with biases ({name})")
        check_consumed(known, self._file.tensor_names, str(path))

    def kind(self, name: str) -> str | None:
        """Return GGUF's type of a matrix whose rows are taken whole, or None."""
        source = self._weights.source(name)
        rows = not isinstance(source.take, Transposed) and len(self._file.shape(source.name)) == 2
        return self._file.kind(source.name) if rows else None

    def blocks(self, name: str, wanted: str) -> Bytes:
        """Return a matrix as the blocks that `block_type` chose, (outputs, inputs / 32, bytes).

        Raises
        ------
        ValueError
            If a scale is not finite.
        """
        source, shape = self._weights.source(name), self._weights.shape(name)
        whole = self._file.shape(source.name)[0]
        raw = self._file.raw_rows(source.name, 0, whole)
        try:
            blocks = to_blocks(raw, self._file.kind(source.name), wanted)
        except ValueError as error:
            raise ValueError(f"{self._source}: weight '{name}' {error}") from None
        if source.take is not None:  # a choice of rows, whatever they hold
            rows: Any = np.arange(whole)[:, None]
            blocks = blocks[source.take.array(self.config, rows)[:, 0]]
        assert len(blocks) == shape[0]
        return blocks

    def tokenizer_json(self) -> str | None:
        """See `Checkpoint`. A ``tokenizer.json`` beside the file comes first.

        Raises
        ------
        ValueError
            If that is another model's, or the file's own is of a kind that kvctl cannot rebuild.
        """
        beside = self._source.with_name("tokenizer.json")
        if not beside.exists():
            metadata = self._file.metadata
            if metadata.get("tokenizer.ggml.model") is None:
                return None
            return tokenizer_from_gguf(metadata, str(self._source))
        text = read_text(beside)
        with reading(str(self._source)):
            check_same_vocabulary(text, str(beside), self._file.metadata, str(self._source))
        return text

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return fields_of_gguf(self._file.metadata)
