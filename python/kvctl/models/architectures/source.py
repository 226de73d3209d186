"""Where a weight lies in a file, and how it is taken from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..checkpoints.array import Array

if TYPE_CHECKING:
    from ..checkpoints.config import DecoderConfig

Shape = tuple[int, ...]


class Take(Protocol):
    """How a weight is taken from a tensor of a file."""

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """Return the shape that the tensor must have, for a weight of the shape `wanted`."""
        ...

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """Return the weight."""
        ...


@dataclass(frozen=True)
class Source:
    """A tensor of a file, by name; `take` is None where it is the weight as it stands."""

    name: str
    take: Take | None = None


@dataclass(frozen=True)
class PlusOne:
    """A norm's weight that is stored as its distance from one."""

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """See `Take`."""
        return wanted

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """See `Take`."""
        return tensor + np.float32(1)


@dataclass(frozen=True)
class Rows:
    """Some of the rows of a tensor that holds several weights, one after another.

    Parameters
    ----------
    part : str
        "q", "k", "v", "gate" or "up".
    of : str
        All parts in their order, separated by spaces.
    """

    part: str
    of: str = "q k v"

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """See `Take`."""
        return (sum(_rows(config, part) for part in self.of.split()), *wanted[1:])

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """See `Take`."""
        begin = 0
        for part in self.of.split():
            if part == self.part:
                break
            begin += _rows(config, part)
        return tensor[begin : begin + _rows(config, self.part)]


@dataclass(frozen=True)
class HeadByHead:
    """q, k or v (0, 1, 2) of a tensor that holds the three of each head together."""

    index: int

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """See `Take`."""
        return (3 * wanted[0], *wanted[1:])

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """See `Take`."""
        heads = tensor.reshape(config.num_attention_heads, 3, config.head_dim, *tensor.shape[1:])
        return np.ascontiguousarray(heads[:, self.index]).reshape(-1, *tensor.shape[1:])


@dataclass(frozen=True)
class Transposed:
    """A matrix that is stored as (inputs, outputs); vectors stay as they are."""

    inner: Take | None = None

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """See `Take`."""
        shape = wanted if self.inner is None else self.inner.shape(config, wanted)
        return shape[::-1]

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """See `Take`."""
        array = np.ascontiguousarray(tensor.T)
        return array if self.inner is None else self.inner.array(config, array)


@dataclass(frozen=True)
class NeighbouringPairs:
    """q or k of a file whose rotation pairs neighbours: halves of heads lie interleaved.

    Parameters
    ----------
    heads : str
        The field of the configuration that counts its heads.
    """

    heads: str

    def shape(self, config: DecoderConfig, wanted: Shape) -> Shape:
        """See `Take`."""
        return wanted

    def array(self, config: DecoderConfig, tensor: Array) -> Array:
        """See `Take`."""
        heads = getattr(config, self.heads)
        pairs = tensor.reshape(heads, len(tensor) // heads // 2, 2, *tensor.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)


def _rows(config: DecoderConfig, part: str) -> int:
    heads = config.num_attention_heads if part == "q" else config.num_key_value_heads
    return heads * config.head_dim if part in ("q", "k", "v") else config.intermediate_size
