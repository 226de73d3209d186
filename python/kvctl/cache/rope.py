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
        Read and write keys unrotated (TVM's inline mode). Attention is equal bit for bit and as
        fast. A page holds each key twice and so takes half as much memory again.

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
