"""K and V of the tokens of :class:`kvctl.testing.cache_model.CacheModel`, and attention to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cache_tokens import Tokens

Float64 = npt.NDArray[np.float64]


class KVTable:
    """One row of K and V per token and layer, in float64; a row that was never written is NaN.

    Parameters
    ----------
    num_layers, num_qo_heads, num_kv_heads, head_dim : int
        Shapes; several query heads share a key/value head.
    rope_theta : float or None
        The base of rotary embeddings, None for none.
    rope_inline : bool
        Rotate keys when they are read, at their logical position, not when they are appended.
    """

    def __init__(
        self,
        num_layers: int,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_theta: float | None,
        rope_inline: bool,
    ) -> None:
        self._group = num_qo_heads // num_kv_heads
        self._rope_theta = rope_theta
        self._rope_inline = rope_inline
        self._num_tokens = 0
        self._kv = np.full((2, num_layers, 64, num_kv_heads, head_dim), np.nan)

    def new_token(self) -> int:
        """Return the number of a new row."""
        if self._num_tokens == self._kv.shape[2]:
            self._kv = np.concatenate([self._kv, np.full_like(self._kv, np.nan)], axis=2)
        self._num_tokens += 1
        return self._num_tokens - 1

    def read(self, numbers: list[int]) -> tuple[Float64, Float64]:
        """Return K and V of tokens, each ``(num_layers, tokens, num_kv_heads, head_dim)``."""
        return self._kv[0][:, numbers], self._kv[1][:, numbers]

    def write(self, layer: int, numbers: list[int], k: Float64, v: Float64) -> None:
        """Set K and V of tokens in a layer."""
        self._kv[0, layer, numbers] = k
        self._kv[1, layer, numbers] = v

    def rotated_copy(self, token: int, by: int) -> int:
        """Return a copy of a token with rotated keys; inline RoPE rotates when it reads."""
        copy = self.new_token()
        self._kv[:, :, copy] = self._kv[:, :, token]
        if not self._rope_inline:
            self._kv[0, :, copy] = self.rotate(
                self._kv[0, :, token], np.full(self._kv.shape[1], by)
            )
        return copy

    def rotate(self, x: Float64, positions: npt.NDArray[np.int64]) -> Float64:
        """Return heads rotated to positions; without RoPE as they are."""
        if self._rope_theta is None:
            return x
        half = x.shape[-1] // 2
        angle = positions[:, None] * self._rope_theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def attend(
        self,
        q: Float64,
        layer: int,
        tokens: Tokens,
        see: npt.NDArray[np.bool_],
        scale: float,
    ) -> Float64:
        """Return what queries ``(rows, num_qo_heads, head_dim)`` attend to of a sequence.

        Two queries for each row, ``(2, rows, ...)``, are those for the window and for the sinks.
        """
        near: npt.NDArray[np.bool_] = np.array(True)
        if q.ndim == 4:  # two of them: for the window, and for the sinks behind it
            assert tokens.window is not None
            position = tokens.logical_positions()
            near = position > position[-q.shape[1] :, None] - tokens.window.size
        q, q_at_sinks = q if q.ndim == 4 else (q, q)
        numbers = tokens.committed + tokens.pending
        k, v = self._kv[0, layer, numbers], self._kv[1, layer, numbers]
        if self._rope_inline:
            k = self.rotate(k, np.array(tokens.positions))
        # Hidden columns may hold NaN, as memory that was never written does: do not multiply them.
        used = see.any(axis=0)
        k, v, see = k[used], v[used], see[:, used]
        near = near[:, used] if near.ndim else near
        if not len(k):
            return np.zeros_like(q)
        # (heads, rows, dim) times (heads, dim, columns)
        k, v = (
            k.repeat(self._group, axis=1).transpose(1, 2, 0),
            v.repeat(self._group, axis=1).swapaxes(0, 1),
        )
        scores = np.where(near, q.swapaxes(0, 1) @ k, q_at_sinks.swapaxes(0, 1) @ k) * scale
        scores[:, ~see] = -np.inf
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - np.maximum(top, -1e300))  # a row that sees nothing: exp(-inf)
        out: Float64 = weights @ v
        out /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
        return out.swapaxes(0, 1)
