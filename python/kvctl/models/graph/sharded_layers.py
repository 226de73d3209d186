"""The layers of one worker of several, and its mask of logits."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.nn import Module, Parameter, Tensor, op

from .layers import LinearLayer
from .logit_mask import LOGIT_MASK
from .tensor_parallel import TensorParallel


class ShardedLayers:
    """Layers of one worker; projections out of heads and of the feed-forward are all workers'.

    Parameters
    ----------
    inner : Layers
        How a worker's own layers are made.
    parallel : TensorParallel
        How the model is split. Whole sums need kvctl's layers.
    """

    def __init__(self, inner: Any, parallel: TensorParallel) -> None:
        self._inner, self._parallel = inner, parallel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def linear(self, kind: str, inputs: int, outputs: int, *, bias: bool = False) -> LinearLayer:
        """See `Layers`."""
        layer: LinearLayer
        if kind not in ("o", "down"):
            layer = self._inner.linear(kind, inputs, outputs, bias=bias)
        elif self._parallel.sums == "whole":
            layer = _GatheredLinear(self._inner, kind, self._parallel, bias=bias)
        else:
            layer = _RowParallelLinear(self._inner, kind, inputs, outputs, bias=bias)
        return layer


class _RowParallelLinear(Module):
    """Each worker multiplies its inputs; the sum, the bias and the residual are whole."""

    def __init__(self, layers: Any, kind: str, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        product: Any = layers.linear(kind, inputs, outputs)
        self.weight = product.weight
        self.bias = Parameter((outputs,), layers.dtype) if bias else None
        self._layers, self._multiply = layers, product.forward

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(…, inputs)`` of this worker -> ``(…, outputs)`` of all."""
        total = op.ccl_allreduce(self._multiply(x), "sum")
        if self.bias is not None:
            total = self._layers.add_bias(total, self.bias)
        return total if residual is None else self._layers.scale(total, 1.0, residual)


class _GatheredLinear(Module):
    """Each worker computes some outputs from the inputs of all; every sum is that of one worker.

    Residual and bias are added behind the gathering, in the order of `KvctlLinear`.
    """

    def __init__(self, layers: Any, kind: str, parallel: TensorParallel, *, bias: bool) -> None:
        super().__init__()
        self._before, self._behind = parallel.columns(kind), parallel.columns("hidden")
        product: Any = layers.linear(kind, sum(self._before), parallel.outputs)
        self.weight = product.weight
        self.bias = Parameter((sum(self._behind),), layers.dtype) if bias else None
        self._layers, self._multiply = layers, product.forward

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(…, inputs)`` of this worker -> ``(…, outputs)`` of all."""
        out = _gather(self._multiply(_gather(x, self._before)), self._behind, residual)
        return out if self.bias is None else self._layers.add_bias(out, self.bias)


def _gather(x: Tensor, columns: Sequence[int], residual: Tensor | None = None) -> Tensor:
    """Join each worker's first columns on all workers, and add the residual in the same pass."""
    counts = Tensor(_expr=relax.const(np.array(columns, "int64"), "int64"))
    out = Tensor.placeholder([*x.shape[:-1], sum(columns)], x.dtype)
    if residual is None:
        return op.extern("kvctl.model.gather_columns", [x, counts], out)
    return op.extern("kvctl.model.gather_columns_add", [x, counts, residual], out)


def make_sharded_mask(
    model: Module, parallel: TensorParallel, unused: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Give a model the parameter `LOGIT_MASK` where it needs one; returns what applies it."""
    if len(unused) == 0 and parallel.vocab * parallel.workers == parallel.config.vocab_size:
        return lambda logits: logits
    mask = Parameter((parallel.vocab,), "float32")
    setattr(model, LOGIT_MASK, mask)
    return lambda logits: logits + mask
