"""What a checkpoint says of its weights, whatever the format of its files."""

from __future__ import annotations

from pathlib import Path

from .array import Array
from .source_weights import SourceWeights


class FileCheckpoint:
    """The weights of a model on disk; a format adds how it finds them.

    See `kvctl.models.Checkpoint`.
    """

    _source: Path
    _weights: SourceWeights

    @property
    def source(self) -> Path:
        """See `Checkpoint`."""
        return self._source

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return self._weights.shape(name)

    def tensor(self, name: str) -> Array:
        """See `Checkpoint`."""
        return self._weights.tensor(name)

    def rows(self, name: str, begin: int, end: int) -> Array:
        """Return some rows of a weight: what `tensor` would hold there."""
        return self._weights.rows(name, begin, end)
