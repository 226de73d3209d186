"""The layers of a model's graph as TVM's own operators, for devices other than the CPU."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from .layers import LinearLayer, QKParts


class PlainLinear(nn.Linear):
    """TVM's linear layer."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply, and add the residual."""
        out = super().forward(x)
        return out if residual is None else out + residual


class PlainLayers:
    """Layers of TVM's own operators, scheduled by its compiler; for devices other than the CPU."""

    def __init__(self, dtype: str) -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"on a GPU dtype must be one of float16, float32, not '{dtype}'")
        self.dtype = dtype

    def linear(self, kind: str, inputs: int, outputs: int, *, bias: bool = False) -> LinearLayer:
        """See `Layers`."""
        layer: LinearLayer = PlainLinear(inputs, outputs, bias=bias, dtype=self.dtype)
        return layer

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = nn.RMSNorm(
            size, -1, epsilon, bias=False, dtype=self.dtype
        )
        return layer

    def layer_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = nn.LayerNorm(size, epsilon, dtype=self.dtype)
        return layer

    def qk_norm(
        self, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, parts: QKParts, epsilon: float
    ) -> Tensor:
        """See `Layers`."""
        q, k, v = op.split(qkv, [parts.q, parts.q + parts.k], axis=-1)
        normed = []
        for part, weight in ((q, q_weight), (k, k_weight)):
            groups = op.reshape(part, (*part.shape[:-1], -1, weight.shape[0]))
            normed.append(op.reshape(op.rms_norm(groups, weight, -1, epsilon), part.shape))
        return op.concat([*normed, v], -1)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See `Layers`."""
        gate, up = op.split(gate_up, 2, axis=-1)
        return self.activate(gate, activation) * up

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See `Layers`."""
        if activation == "silu":
            return op.silu(x)
        if activation == "relu":
            return op.relu(x)
        return op.gelu(x, approximate="tanh" if activation == "gelu_tanh" else None)

    def scale(self, x: Tensor, factor: float, addend: Tensor | None = None) -> Tensor:
        """See `Layers`."""
        scaled = x * factor
        return scaled if addend is None else scaled + addend

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        """See `Layers`."""
        return x + bias

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """See `Layers`."""
        return op.tanh(x / cap) * cap

    def rope_table(
        self, positions: Tensor, frequencies: npt.NDArray[np.float64], factor: float
    ) -> Tensor:
        """See `Layers`. Angles are float32."""
        constant = Tensor(_expr=relax.const(frequencies.astype(np.float32)[None], "float32"))
        n = positions.shape[0]
        angles = op.reshape(positions.astype("float32"), (n, 1)) * constant
        emit = relax.BlockBuilder.current().emit
        sines = [Tensor(_expr=emit(f(angles._expr))) for f in (relax.op.cos, relax.op.sin)]
        return op.concat([part * factor for part in sines], -1)

    def rotate(self, qkv: Tensor, table: Tensor, heads: int) -> Tensor:
        """See `Layers`."""
        n, total, dim = qkv.shape
        rotary = table.shape[-1]
        half = rotary // 2
        turned, rest = op.split(qkv, [heads], axis=1) if heads < total else (qkv, None)
        whole = turned.astype("float32")
        head, tail = op.split(whole, [rotary], axis=-1) if rotary < dim else (whole, None)
        a, b = op.split(head, 2, axis=-1)
        cosines, sines = op.split(op.reshape(table, (n, 1, rotary)), [half], axis=-1)
        parts = [a * cosines - b * sines, b * cosines + a * sines]
        rotated = op.concat([*parts, *([] if tail is None else [tail])], -1).astype(qkv.dtype)
        return rotated if rest is None else op.concat([rotated, rest], 1)

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """See `Layers`."""
        return op.take(table, indices, axis=0)
