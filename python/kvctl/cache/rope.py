"""Rotary position embedding as a cache applies it."""

from __future__ import annotations

import math


class Rope:
    """Rotary position embedding that the cache applies to q and k.

    Parameters
    ----------
    theta : float
        The base of the frequencies.
    scale : float
        Positions are multiplied by it.
    inline : bool
        Show and take keys as they were before they were rotated (TVM's inline mode). Attention is
        the same to the last bit and as fast; a page takes half as much memory again, since it holds
        each key twice.

    Raises
    ------
    ValueError
        If theta is not positive, or a number not finite.
    """

    def __init__(self, *, theta: float = 10000.0, scale: float = 1.0, inline: bool = False) -> None:
        if not 0 < theta < math.inf:
            raise ValueError(f"theta must be positive and finite, got {theta}")
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        self.theta = theta
        self.scale = scale
        self.inline = inline
