"""The layers of one worker of several, and its mask of logits."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.relax.frontend.nn import Module, Parameter, Tensor, op

from .layers import LinearLayer
from .logit_mask import LOGIT_MASK
from .tensor_parallel import TensorParallel


class ShardedLayers:
    """Layers of one worker: an allreduce behind projections out of heads and of the feed-forward.

    Parameters
    ----------
    inner : Layers
        How a worker's own layers are made.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def linear(self, kind: str, inputs: int, outputs: int, *, bias: bool = False) -> LinearLayer:
        """See `Layers`."""
        if kind in ("o", "down"):
            layer: LinearLayer = _RowParallelLinear(self._inner, kind, inputs, outputs, bias=bias)
            return layer
        whole: LinearLayer = self._inner.linear(kind, inputs, outputs, bias=bias)
        return whole


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


def make_sharded_mask(
    model: Module, parallel: TensorParallel, unused: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Give a model the parameter `LOGIT_MASK` where it needs one; returns what applies it."""
    if len(unused) == 0 and parallel.vocab * parallel.workers == parallel.config.vocab_size:
        return lambda logits: logits
    mask = Parameter((parallel.vocab,), "float32")
    setattr(model, LOGIT_MASK, mask)
    return lambda logits: logits + mask
