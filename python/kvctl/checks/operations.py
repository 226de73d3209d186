"""Which operation of a model gives a row other bits when it runs among other rows.

A compiled model's virtual machine says what it calls. A model of PyTorch has hooks on the modules
that have no modules of their own; what happens between two of them is named after their parent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.convert import to_numpy
from ..engine.compiled.function_table import FunctionTable

if TYPE_CHECKING:
    from ..engine.protocol import Runner

_FLOATS = re.compile(r"b?float")


@dataclass(frozen=True)
class Event:
    """What one operation of a forward gave.

    Attributes
    ----------
    name : str
        How a reader knows the operation, and where it is.
    value : array
        Its bits.
    """

    name: str
    value: npt.NDArray[Any]

    def differs(self, row: int, rows: int, alone: Event) -> bool:
        """Return whether a row of so many has other bits than the same row alone.

        What has no axis of rows, and what differs elsewhere in shape, is not compared.
        """
        many, one = self.value, alone.value
        if many.ndim != one.ndim:
            return False
        axes = [a for a in range(many.ndim) if many.shape[a] != one.shape[a]]
        if len(axes) != 1 or many.shape[axes[0]] != rows or one.shape[axes[0]] != 1:
            return False
        return many.take([row], axes[0]).tobytes() != one.tobytes()


def can_record(runner: Runner) -> bool:
    """Return whether the operations of a runner can be recorded."""
    return _library(runner) is not None or _module(runner) is not None


@contextmanager
def recorded(runner: Runner) -> Iterator[list[Event]]:
    """Record what the operations of forwards give, in the order in which they run."""
    events: list[Event] = []
    library, module = _library(runner), _module(runner)
    if library is not None:
        with library.instrumented(_on_call(events)):
            yield events
    else:
        with ExitStack() as hooks:
            _hook(module, events, hooks)
            yield events


def first_difference(
    many: Sequence[Event], rows: int, alone: Sequence[tuple[int, Sequence[Event]]]
) -> Event | None:
    """Return the first operation that gives a row other bits.

    Parameters
    ----------
    many
        What the operations of a forward gave.
    rows
        How many rows it had.
    alone
        Rows of it by number, and what the operations gave each of them alone.

    Returns
    -------
    Event or None
        None if no operation does, as far as their order is the same.
    """
    for place, event in enumerate(many):
        for row, events in alone:
            if place >= len(events) or events[place].name != event.name:
                return None
            if event.differs(row, rows, events[place]):
                return event
    return None


def _library(runner: Any) -> FunctionTable | None:
    functions = getattr(runner, "functions", None)
    return functions if isinstance(functions, FunctionTable) else None


def _module(runner: Any) -> Any:
    model = getattr(runner, "model", None)
    return model if hasattr(model, "register_forward_hook") else None


def _on_call(events: list[Event]) -> Callable[[str, Any, Sequence[Any]], None]:
    """Return what a virtual machine calls behind each of its calls."""
    layer = 0  # attentions so far

    def called(name: str, result: Any, arguments: Sequence[Any]) -> None:
        nonlocal layer
        if "alloc" in name:
            return  # what it gives is not written yet
        tensors = [one for one in (*arguments, result) if hasattr(one, "__dlpack__")]
        if tensors and _FLOATS.match(str(tensors[-1].dtype)) and _on_host(tensors[-1]):
            place = (
                f"behind the attention of layer {layer - 1}" if layer else "before all attention"
            )
            if "attention" in name:
                place = f"of layer {layer}"
            events.append(Event(f"{name} {place}", _bits(tensors[-1])))
        layer += "attention" in name

    return called


def _hook(model: Any, events: list[Event], hooks: ExitStack) -> None:
    """Have the modules that have none of their own add what they read and give."""
    modules = dict(model.named_modules())

    def add(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        if hasattr(value, "detach") and value.is_floating_point():
            events.append(Event(name, _torch_bits(value)))

    for path, module in modules.items():
        if any(True for _ in module.children()) or not path:
            continue
        parent, _, own = path.rpartition(".")
        before = f"{parent or 'model'} ({type(modules[parent]).__name__}), before its {own}"
        after = f"{path} ({type(module).__name__})"

        def entered(_: Any, given: Any, name: str = before) -> None:
            add(name, given)

        def left(_: Any, __: Any, found: Any, name: str = after) -> None:
            add(name, found)

        hooks.callback(module.register_forward_pre_hook(entered).remove)
        hooks.callback(module.register_forward_hook(left).remove)


def _on_host(tensor: Any) -> bool:
    return int(tensor.__dlpack_device__()[0]) == int(tvm_ffi.DLDeviceType.kDLCPU)


def _bits(tensor: Any) -> npt.NDArray[Any]:
    """Return a copy: the memory is used again. NumPy's DLPack has no bfloat16."""
    if "bfloat16" in str(tensor.dtype):
        shape, halves = tvm_ffi.Shape(tensor.shape), tvm_ffi.dtype("uint16")
        tensor = ffi.runtime.TVMTensorCreateView(tensor, shape, halves, 0)
    return np.array(to_numpy(tensor))


def _torch_bits(tensor: Any) -> npt.NDArray[Any]:
    import torch

    whole = tensor.detach().contiguous()
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits: npt.NDArray[Any] = whole.view(kinds[whole.element_size()]).cpu().numpy().copy()
    return bits
