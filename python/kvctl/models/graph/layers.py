"""The layers of a model's graph, and kvctl's on the CPU; `plain_layers` has TVM's, for elsewhere.

On the CPU every layer is one call of a ``kvctl.model.*`` function: no code of TVM's is on the hot
path. A linear layer's parameter is its *packed* weight, bytes whose number is known only on the
machine that loads it: a symbolic dimension. What is saved, and what ``ParamSpec`` describes, is the
plain weight.
"""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op


@dataclass(frozen=True)
class ParamSpec:
    """One parameter as it is saved, and what becomes of it at load."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    packed: str | None = None
    """Packed function that the loader replaces the plain tensor by, or None."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that is saved, also where blocks hold it."""
        if self.dtype != "uint8":
            return self.shape
        return (self.shape[0], self.shape[1] * BLOCK_INPUTS)


class LinearLayer(Protocol):
    """``x (…, inputs) -> (…, outputs)``, plus a residual of the output's shape where given."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        ...


@dataclass(frozen=True)
class QKParts:
    """The columns of q and of k in a fused row."""

    q: int
    k: int


class Layers(Protocol):
    """A way to build the layers of a model."""

    def linear(self, kind: str, inputs: int, outputs: int, *, bias: bool = False) -> LinearLayer:
        """Make a linear layer; layers of one kind have one shape."""
        ...

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """Make an RMSNorm over the last axis."""
        ...

    def layer_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """Make a LayerNorm with bias over the last axis."""
        ...

    def qk_norm(
        self, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, parts: QKParts, epsilon: float
    ) -> Tensor:
        """Return fused rows ``(..., columns)`` with RMSNorm applied to q and k.

        Columns are normalised in groups as long as the weights.
        """
        ...

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """Return the activation of the first half of the last axis times the second half."""
        ...

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """Return the activation of each element."""
        ...

    def scale(self, x: Tensor, factor: float, addend: Tensor | None = None) -> Tensor:
        """Return ``x * factor``, plus `addend` where given."""
        ...

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``x + bias`` for a bias of the last axis."""
        ...

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """Return ``cap * tanh(x / cap)``."""
        ...

    def rope_table(
        self, positions: Tensor, frequencies: npt.NDArray[np.float64], factor: float
    ) -> Tensor:
        """Return ``(n, 2 * frequencies)``: cosines and sines of ``(n,)`` positions."""
        ...

    def rotate(self, qkv: Tensor, table: Tensor, heads: int) -> Tensor:
        """Rotate the first `heads` heads of ``(n, all heads, head_dim)`` by a table."""
        ...

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """Return ``table[indices]``."""
        ...

    dtype: str


def _like(x: Tensor) -> Tensor:
    return Tensor.placeholder(x.shape, "float32")


PACK_BFLOAT16 = "kvctl.model.pack_linear_bf16"
_PACKS = {
    "float32": "kvctl.model.pack_linear",
    "bfloat16": PACK_BFLOAT16,
    "int8": "kvctl.model.pack_quantized",
    "int4": "kvctl.model.pack_quantized",
    "int4_offset": "kvctl.model.pack_quantized",
    "int8_parts": "kvctl.model.pack_quantized",
}
_DTYPES = ("float32", "bfloat16", "int8", "int4")
BLOCK_INPUTS = 32
BLOCK_BYTES = {"int8": 34, "int4": 18, "int4_offset": 22, "int8_parts": 40}
"""Of the blocks of 32 weights that quantized weights are saved in: kernels/quantized_blocks.h."""


class KvctlLinear(Module):
    """``kvctl.model.linear`` over a packed weight, and ``add_bias`` where it has one."""

    def __init__(self, kind: str, inputs: int, outputs: int, weights: str, *, bias: bool) -> None:
        super().__init__()
        self.weight = Parameter((f"{kind}_packed_bytes",), "uint8")
        if weights in BLOCK_BYTES:
            blocks = (outputs, inputs // BLOCK_INPUTS, BLOCK_BYTES[weights])
            self.weight.attrs.update(plain_shape=blocks, plain_dtype="uint8")
        else:
            self.weight.attrs["plain_shape"] = (outputs, inputs)
        self.weight.attrs["packed"] = _PACKS[weights]
        self.bias = Parameter((outputs,), "float32") if bias else None
        self.outputs = outputs

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply, and add the residual in the same pass."""
        out = Tensor.placeholder([*x.shape[:-1], self.outputs], "float32")
        if residual is None:
            product = op.extern("kvctl.model.linear", [x, self.weight], out)
        else:
            product = op.extern("kvctl.model.linear_add", [x, self.weight, residual], out)
        if self.bias is None:
            return product
        return op.extern("kvctl.model.add_bias", [product, self.bias], out)


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


class KvctlLayerNorm(Module):
    """``kvctl.model.layer_norm``."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = Parameter((size,), "float32")
        self.bias = Parameter((size,), "float32")
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        arguments = [x, self.weight, self.bias, self.epsilon]
        return op.extern("kvctl.model.layer_norm", arguments, _like(x))


class KvctlLayers:
    """Layers that call kvctl's CPU kernels; activations are float32.

    Parameters
    ----------
    weights : str
        "float32", "bfloat16", "int8" or "int4": what the packed linear weights are stored as.
        Blocks of 8 or 4 bits have 32 inputs: a layer with another number of inputs has bfloat16.
        The output layer of int4 has 8 bits, as all logits depend on it directly.
    blocks : mapping, optional
        The blocks of layers of a kind, where they are others: a file's own are kept.
    """

    dtype = "float32"

    def __init__(self, weights: str, blocks: Mapping[str, str] | None = None) -> None:
        if weights not in _DTYPES:
            allowed = ", ".join(_DTYPES)
            raise ValueError(f"on the CPU dtype must be one of {allowed}, not '{weights}'")
        self._weights, self._blocks = weights, blocks or {}

    def linear(self, kind: str, inputs: int, outputs: int, *, bias: bool = False) -> LinearLayer:
        """See `Layers`."""
        weights = self._weights
        if weights in BLOCK_BYTES:
            if inputs % BLOCK_INPUTS:
                weights = "bfloat16"
            else:
                weights = self._blocks.get(kind, "int8" if kind == "lm_head" else weights)
        layer: LinearLayer = KvctlLinear(kind, inputs, outputs, weights, bias=bias)
        return layer

    def rms_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = KvctlRMSNorm(size, epsilon)
        return layer

    def layer_norm(self, size: int, epsilon: float) -> Callable[[Tensor], Tensor]:
        """See `Layers`."""
        layer: Callable[[Tensor], Tensor] = KvctlLayerNorm(size, epsilon)
        return layer

    def qk_norm(
        self, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, parts: QKParts, epsilon: float
    ) -> Tensor:
        """See `Layers`."""
        arguments = [qkv, q_weight, k_weight, parts.q, parts.k, epsilon]
        return op.extern("kvctl.model.qk_norm", arguments, _like(qkv))

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See `Layers`."""
        out = Tensor.placeholder([*gate_up.shape[:-1], gate_up.shape[-1] // 2], "float32")
        if activation == "silu":
            return op.extern("kvctl.model.silu_mul", [gate_up], out)
        return op.extern("kvctl.model.gated_activate", [gate_up, activation], out)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See `Layers`."""
        return op.extern("kvctl.model.activate", [x, activation], _like(x))

    def scale(self, x: Tensor, factor: float, addend: Tensor | None = None) -> Tensor:
        """See `Layers`."""
        if addend is None:
            return op.extern("kvctl.model.scale", [x, factor], _like(x))
        return op.extern("kvctl.model.scale_add", [x, factor, addend], _like(x))

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        """See `Layers`."""
        return op.extern("kvctl.model.add_bias", [x, bias], _like(x))

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """See `Layers`."""
        return op.extern("kvctl.model.soft_cap", [x, cap], _like(x))

    def rope_table(
        self, positions: Tensor, frequencies: npt.NDArray[np.float64], factor: float
    ) -> Tensor:
        """See `Layers`."""
        out = Tensor.placeholder([positions.shape[0], 2 * len(frequencies)], "float32")
        constant = Tensor(_expr=relax.const(frequencies, "float64"))
        return op.extern("kvctl.model.rope_table", [positions, constant, factor], out)

    def rotate(self, qkv: Tensor, table: Tensor, heads: int) -> Tensor:
        """See `Layers`."""
        return op.extern("kvctl.model.rotate", [qkv, table, heads], _like(qkv))

    def take_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """See `Layers`."""
        out = Tensor.placeholder([*indices.shape, table.shape[-1]], "float32")
        return op.extern("kvctl.model.take_rows", [table, indices], out)
