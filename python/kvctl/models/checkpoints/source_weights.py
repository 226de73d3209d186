"""The weights of a model by kvctl's names, wherever its files keep them."""

from __future__ import annotations

from typing import Protocol

from ..architectures.architecture import Layout
from ..architectures.source import Source
from .array import Array
from .config import DecoderConfig
from .weight_names import weight_names, weight_shape


class Tensors(Protocol):
    """The tensors of a file, or of several."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        ...

    def tensor(self, name: str) -> Array:
        """Return a tensor as float32."""
        ...

    def rows(self, name: str, begin: int, end: int) -> Array:
        """Return some rows of a tensor as float32."""
        ...


class SourceWeights:
    """The weights of one model.

    Parameters
    ----------
    config : DecoderConfig
        Its shape.
    layout : Layout
        Where its family keeps weights in such files.
    tensors : Tensors
        The files.
    where : str
        What messages call them.
    prefix : str
        What precedes every name in these files but the output layer's.
    head : str, optional
        What they call the output layer, if that is not what the layout says.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layout: Layout,
        tensors: Tensors,
        *,
        where: str,
        prefix: str = "",
        head: str | None = None,
    ) -> None:
        self.config = config
        self._layout, self._tensors, self._where = layout, tensors, where
        self._prefix, self._head = prefix, head
        # Weights that lie in one tensor are read one after another.
        self._last: tuple[str, Array] | None = None
        self._taken: tuple[str, Array] | None = None

    def name(self, weight: str) -> str:
        """Return the name of the tensor that a weight lies in."""
        return self._source(weight).name

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors that the model takes, each once."""
        return list(dict.fromkeys(self.name(weight) for weight in weight_names(self.config)))

    def shape(self, weight: str) -> tuple[int, ...]:
        """Return the shape of a weight without reading it.

        Raises
        ------
        ValueError
            If the files do not hold it, or hold it in a tensor of another shape.
        """
        source = self._source(weight)
        found = self._tensors.shape(source.name)
        if source.take is None:
            return found
        wanted = weight_shape(self.config, weight)
        whole = source.take.shape(self.config, wanted)
        if found != whole:
            raise ValueError(
                f"{self._where}: weight '{source.name}' is {found}, where the model's shape asks "
                f"for {whole}"
            )
        return wanted

    def tensor(self, weight: str) -> Array:
        """Return a weight as float32.

        Raises
        ------
        ValueError
            As `shape` does.
        """
        source = self._source(weight)
        if source.take is None:
            self._last = None
            return self._tensors.tensor(source.name)
        self.shape(weight)
        if self._last is None or self._last[0] != source.name:
            self._last = (source.name, self._tensors.tensor(source.name))
        return source.take.array(self.config, self._last[1])

    def source(self, weight: str) -> Source:
        """Return the tensor that a weight lies in, and how it is taken from there."""
        return self._source(weight)

    def rows(self, weight: str, begin: int, end: int) -> Array:
        """Return the rows [begin, end) of a weight as float32, reading no more where it can be.

        Raises
        ------
        ValueError
            As `shape` does.
        """
        source = self._source(weight)
        if source.take is None:
            return self._tensors.rows(source.name, begin, end)
        if self._taken is None or self._taken[0] != weight:
            self._taken = (weight, self.tensor(weight))
        return self._taken[1][begin:end]

    def _source(self, weight: str) -> Source:
        source = self._layout.source(weight)
        if weight == "lm_head.weight":  # outside of what is prefixed
            return source if self._head is None else Source(f"{self._head}.weight")
        return Source(self._prefix + source.name, source.take)
