"""The layers of a model's graph: ours on the CPU, TVM's own elsewhere.

On the CPU every layer is one call of a ``kvctl.model.*`` function: no code of TVM's is on the hot
path. A linear layer's parameter is its *packed* weight, bytes whose number is known only on the
machine that loads it: a symbolic dimension. What is saved, and what ``ParamSpec`` describes, is the
plain weight.
"""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op


@dataclass(frozen=True)
class ParamSpec:
    """One parameter as it is saved, and what becomes of it at load."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    packed: str | None = None
    """Packed function that the loader replaces the plain tensor by, or None."""


class LinearLayer(Protocol):
    """``x (…, inputs) -> (…, outputs)``, plus a residual of the output's shape where given."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        ...


class Layers(Protocol):
    """A way to build the layers of a model."""

    def linear(self, kind: str, inputs: int, outputs: int) -> LinearLayer:
        """Make a linear layer without bias; layers of one kind have one shape."""
        ...

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """Make an RMSNorm over the last axis."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return SiLU of the first half of the last axis times the second half."""
        ...

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """Return ``table[indices]``."""
        ...

    dtype: str


class KvctlLinear(Module):
    """``kvctl.model.linear`` over a packed weight."""

    def __init__(self, kind: str, inputs: int, outputs: int, pack: str) -> None:
        super().__init__()
        self.weight = Parameter((f"{kind}_packed_bytes",), "uint8")
        self.weight.attrs["plain_shape"] = (outputs, inputs)
        self.weight.attrs["packed"] = pack
        self.outputs = outputs

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply, and add the residual in the same pass."""
        out = Tensor.placeholder([*x.shape[:-1], self.outputs], "float32")
        if residual is None:
            return op.extern("kvctl.model.linear", [x, self.weight], out)
        return op.extern("kvctl.model.linear_add", [x, self.weight, residual], out)


class KvctlRMSNorm(Module):
    """``kvctl.model.rms_norm``."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = Parameter((size,), "float32")
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        out = Tensor.placeholder(x.shape, "float32")
        return op.extern("kvctl.model.rms_norm", [x, self.weight, self.epsilon], out)


class KvctlLayers:
    """Layers that call kvctl's CPU kernels; activations are float32.

    Parameters
    ----------
    weights : str
        "float32" or "bfloat16": what the packed linear weights are stored as.
    """

    dtype = "float32"

    def __init__(self, weights: str) -> None:
        packs = {
            "float32": "kvctl.model.pack_linear",
            "bfloat16": "kvctl.model.pack_linear_bf16",
        }
        if weights not in packs:
            raise ValueError(f"on the CPU dtype must be one of {', '.join(packs)}, not '{weights}'")
        self._pack = packs[weights]

    def linear(self, kind: str, inputs: int, outputs: int) -> LinearLayer:
        """See `Layers`."""
        layer: LinearLayer = KvctlLinear(kind, inputs, outputs, self._pack)
        return layer

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = KvctlRMSNorm(size, epsilon)
        return layer

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Layers`."""
        out = Tensor.placeholder([*gate_up.shape[:-1], gate_up.shape[-1] // 2], "float32")
        return op.extern("kvctl.model.silu_mul", [gate_up], out)

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """See `Layers`."""
        out = Tensor.placeholder([*indices.shape, table.shape[-1]], "float32")
        return op.extern("kvctl.model.take_rows", [table, indices], out)


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

    def linear(self, kind: str, inputs: int, outputs: int) -> LinearLayer:
        """See `Layers`."""
        layer: LinearLayer = PlainLinear(inputs, outputs, bias=False, dtype=self.dtype)
        return layer

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = nn.RMSNorm(
            size, -1, epsilon, bias=False, dtype=self.dtype
        )
        return layer

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Layers`."""
        gate, up = op.split(gate_up, 2, axis=-1)
        return op.silu(gate) * up

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """See `Layers`."""
        return op.take(table, indices, axis=0)


def make_logit_mask(vocab_size: int, unused: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return what makes the logits of `unused` ids minus infinity, whatever lies in their rows."""
    if len(unused) == 0:
        return lambda logits: logits
    bias = np.zeros(vocab_size, np.float32)
    bias[list(unused)] = -np.inf
    return lambda logits: logits + Tensor(_expr=relax.const(bias, "float32"))
