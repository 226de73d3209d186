"""A recurrent state in a model's graph: the functions of `kvctl.RecurrentState` for models."""

# TVM's classes have no types, to mypy:
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend.nn import Object, Tensor


def _emit(expr: Any, name: str = "") -> Any:
    return relax.BlockBuilder.current().emit(expr, name)


@dataclass(frozen=True)
class StateSpec:
    """One state of a recurrent layer; it starts as zeros."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class RNNState(Object):
    """The recurrent state that a function of the model takes, and returns."""

    def step(self, num_rows: Any, *, emit_steps: bool) -> RecurrentStep:
        """Return what the function's new tokens read and write."""
        return RecurrentStep(self, num_rows, emit_steps=emit_steps)


class RecurrentStep:
    """One forward of a model over a recurrent state.

    Parameters
    ----------
    state : RNNState
        The argument of the function.
    num_rows
        New tokens of the batch, symbolic or not.
    emit_steps : bool
        Compute the state after every token, which token trees and rollbacks to any token need, or
        only the state after the last token of each sequence.
    """

    def __init__(self, state: RNNState, num_rows: Any, *, emit_steps: bool) -> None:
        self.state = state._expr
        self.emit_steps = emit_steps
        builder = relax.BlockBuilder.current()
        self.num_roots = tirx.Var("num_roots", "int64")
        shape = relax.call_pure_packed(
            "kvctl.recurrent.root_shape", self.state, ty_args=relax.ShapeType(ndim=1)
        )
        builder.match_cast(builder.emit(shape), relax.ShapeType([self.num_roots]))
        self.num_entries = num_rows if emit_steps else self.num_roots
        rows = relax.call_dps_packed(
            "kvctl.recurrent.get_rows",
            [self.state, relax.prim_value(int(emit_steps))],
            out_ty=relax.TensorType((2, num_rows), "int32"),
        )
        self.rows = Tensor(_expr=builder.emit(rows, "rows"))
        """(2, rows): the entry each token reads (-1 - root: a root), and the one it writes."""

    def roots(self, layer: int, index: int, spec: StateSpec) -> Tensor:
        """Return the states that tokens start from, ``(num_roots, *shape)``."""
        roots = relax.call_dps_packed(
            "kvctl.recurrent.get_roots",
            [self.state, relax.prim_value(layer), relax.prim_value(index)],
            out_ty=relax.TensorType((self.num_roots, *spec.shape), spec.dtype),
        )
        return Tensor(_expr=_emit(roots, "roots"))

    def entries(self, spec: StateSpec) -> Tensor:
        """Return a placeholder of what :meth:`set` takes, ``(num_entries, *shape)``."""
        return Tensor.placeholder([self.num_entries, *spec.shape], spec.dtype)

    def set(self, layer: int, index: int, entries: Tensor) -> None:
        """Hand over the states after the tokens, ``(num_entries, *shape)``."""
        name = "kvctl.recurrent.set_steps" if self.emit_steps else "vm.builtin.rnn_state_set"
        call = relax.call_pure_packed(
            name,
            self.state,
            relax.prim_value(layer),
            relax.prim_value(index),
            entries._expr,
            ty_args=relax.AnyType(),
        )
        self.state = _emit(call, "rnn_state")

    def result(self) -> RNNState:
        """Return the state that the function returns: it carries what was set."""
        return RNNState(_expr=self.state, _name="rnn_state")


def create_rnn_state(
    num_layers: int, specs: Sequence[StateSpec], max_batch_size: Any, max_history: Any
) -> RNNState:
    """Emit a model's ``create_rnn_state``: the state of `num_layers` layers, all alike."""
    zeros = [_emit(relax.op.zeros(spec.shape, spec.dtype)) for spec in specs]
    created = relax.call_pure_packed(
        "kvctl.recurrent.create_for_model",
        relax.ShapeExpr([max_batch_size, max_history]),
        relax.prim_value(num_layers),
        relax.Tuple(zeros),
        ty_args=relax.AnyType(),
    )
    return RNNState(_expr=created, _name="rnn_state")
