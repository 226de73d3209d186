"""GGUF's quantised rows as the blocks that kvctl's linear layers take, without rounding.

A block has 32 weights of one output; ``kernels/quantized_blocks.h`` says what each type holds.
GGUF's types of 4 bits fit ``int4_offset``, and all of 4 to 8 bits fit ``int8_parts``: their scales
are float16 times integers, and so are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_PLAIN = ("Q4_0", "Q5_0", "Q8_0")
"""Types with a scale alone: as floats they become blocks of the same integers again."""

_FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")
_FINER = ("Q5_0", "Q5_1", "Q5_K", "Q6_K")


def block_type(kinds: Collection[str | None], bits: int) -> str | None:
    """Choose the blocks that keep the bits of tensors which are one parameter.

    Parameters
    ----------
    kinds
        What the file has them as: names of GGUF's types, None for what is no tensor of GGUF's.
    bits : int
        8 or 4: what is asked for. With 4, tensors of 5 and 6 bits keep theirs in 8: a file that
        has some as such needs them so.

    Returns
    -------
    str or None
        "int8", "int4", "int8_parts" or "int4_offset"; None where they are rounded.
    """
    if not kinds or None in kinds:
        return None
    found = set(kinds)
    if bits == 4 and found == {"Q4_0"}:
        return "int4"
    if bits == 4 and found <= set(_FOUR_BITS):
        return "int4_offset"
    if bits == 4 and "Q8_0" in found and not found & set(_FINER):
        return None  # 4 bits were asked of a file that has 8
    if found <= set(_PLAIN):
        return "int8"
    return "int8_parts" if found <= {*_FOUR_BITS, *_FINER, "Q8_0"} else None


def to_blocks(raw: Bytes, kind: str, wanted: str) -> Bytes:
    """Return the blocks of some rows.

    Parameters
    ----------
    raw : numpy.ndarray
        (rows, bytes) uint8, as the file has them.
    kind : str
        GGUF's type.
    wanted : str
        "int4_offset" or "int8_parts", which `block_type` chose.

    Returns
    -------
    numpy.ndarray
        (rows, inputs / 32, 22 or 40) uint8.

    Raises
    ------
    ValueError
        If a scale is NaN or infinite.
    """
    blocks = _READ[kind](raw)
    size = len(blocks.integers)
    halves = np.stack([blocks.scale, blocks.step], axis=1)
    if not np.isfinite(halves).all():
        raise ValueError("is not finite (NaN or infinity)")
    factor = blocks.factors.astype(np.uint8)
    step_factor = blocks.step_factor.astype(np.uint8)[:, None]
    head = [halves.astype(np.float16).view(np.uint8)]
    if wanted == "int4_offset":
        nibbles = blocks.integers.astype(np.uint8)
        packed = nibbles[:, :16] | nibbles[:, 16:] << 4
        parts = [*head, factor[:, :1], step_factor, packed]
    else:
        integers = blocks.integers.astype(np.int8).view(np.uint8)
        parts = [*head, factor, step_factor, np.zeros((size, 1), np.uint8), integers]
    joined: Bytes = np.concatenate(parts, axis=1)
    return joined.reshape(len(raw), -1, joined.shape[1])


class _Blocks:
    """Blocks of 32: ``scale * factors[i // 16] * integers[i] - step * step_factor``."""

    def __init__(
        self,
        integers: npt.NDArray[np.int16],
        scale: npt.NDArray[np.float16],
        step: npt.NDArray[np.float16] | None = None,
        factors: npt.NDArray[np.int16] | None = None,
        step_factor: npt.NDArray[np.int16] | None = None,
    ) -> None:
        """Take integers (n, 32), scale and step (n,), factors (n, 2) and step_factor (n,)."""
        n = len(integers)
        self.integers, self.scale = integers, scale
        self.step = np.zeros(n, np.float16) if step is None else step
        self.factors = np.ones((n, 2), np.int16) if factors is None else factors
        self.step_factor = np.ones(n, np.int16) if step_factor is None else step_factor


def _half(raw: Bytes, at: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16)[:, 0]


def _nibbles(raw: Bytes) -> npt.NDArray[np.int16]:
    """Return (n, 2 * bytes): the low halves of bytes, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.int16)


def _high_bits(raw: Bytes) -> npt.NDArray[np.int16]:
    """Return (n, 32): bit i of the first four bytes, times 16."""
    return np.unpackbits(raw[:, :4], axis=1, bitorder="little").astype(np.int16) << 4


def _q4_0(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 18)
    scale = _half(raw, 0)
    eight = np.full(len(raw), 8, np.int16)
    return _Blocks(_nibbles(raw[:, 2:]), scale, scale, step_factor=eight)


def _q4_1(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 20)
    return _Blocks(_nibbles(raw[:, 4:]), _half(raw, 0), -_half(raw, 2))


def _q5_0(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 22)
    return _Blocks(_nibbles(raw[:, 6:]) + _high_bits(raw[:, 2:]) - 16, _half(raw, 0))


def _q5_1(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 24)
    integers = _nibbles(raw[:, 8:]) + _high_bits(raw[:, 4:])
    return _Blocks(integers, _half(raw, 0), -_half(raw, 2))


def _q8_0(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 34)
    return _Blocks(raw[:, 2:].view(np.int8).astype(np.int16), _half(raw, 0))


def _six_bits(raw: Bytes) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Return the scales and the minima, (n, 8) each, of twelve bytes (n, 12)."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | low >> 6 << 4], axis=1)
    minima = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
    return scales.astype(np.int16), minima.astype(np.int16)


def _of_eight(raw: Bytes, integers: npt.NDArray[np.int16]) -> _Blocks:
    """Return the blocks of superblocks (n, bytes) of eight, whose integers are (8 n, 32)."""
    scales, minima = _six_bits(raw[:, 4:16])
    factors = np.repeat(scales.reshape(-1, 1), 2, axis=1)
    scale, step = np.repeat(_half(raw, 0), 8), np.repeat(_half(raw, 2), 8)
    return _Blocks(integers, scale, step, factors, minima.reshape(-1))


def _q4_k(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 144)
    # Of 32 bytes, the low halves are one block and the high ones the next.
    return _of_eight(raw, _nibbles(raw[:, 16:].reshape(-1, 32)).reshape(-1, 32))


def _q5_k(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 176)
    low = _nibbles(raw[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    # Bit j of byte i belongs to input i of block j.
    high = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _of_eight(raw, (low + (high.astype(np.int16) << 4)).reshape(-1, 32))


def _q6_k(raw: Bytes) -> _Blocks:
    raw = raw.reshape(-1, 210)
    # Halves of 128 inputs: 64 bytes of low halves of bytes, 32 bytes of pairs of bits.
    pairs = raw[:, :128].reshape(-1, 64)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=1).reshape(-1, 4, 32)
    high = raw[:, 128:192].reshape(-1, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    integers = (low | high << 4).astype(np.int16).reshape(-1, 32) - 32
    factors = raw[:, 192:208].view(np.int8).astype(np.int16).reshape(-1, 2)
    return _Blocks(integers, np.repeat(_half(raw, 208), 8), factors=factors)


_READ: dict[str, Callable[[Bytes], _Blocks]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}
