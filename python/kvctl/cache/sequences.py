"""The operations on sequences that a KV cache and a recurrent state have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from .._ffi import errors as errors  # registers the exception types that libkvctl raises
from .._ffi import functions as ffi

if TYPE_CHECKING:
    from typing_extensions import Self

_Store = TypeVar("_Store", bound=Any)
_Step = ParamSpec("_Step")


def step_context(
    begin_forward: Callable[Concatenate[_Store, _Step], None],
) -> Callable[Concatenate[_Store, _Step], AbstractContextManager[None]]:
    """Return the method ``forward`` that goes with a class's ``begin_forward``."""

    @wraps(begin_forward, assigned=("__module__",))
    @contextmanager
    def forward(self: _Store, /, *args: _Step.args, **kwargs: _Step.kwargs) -> Iterator[None]:
        """Run a step as a context: ended when the block ends, aborted when it raises.

        Takes what ``begin_forward`` takes.
        """
        self.begin_forward(*args, **kwargs)
        try:
            yield
            self.end_forward()
        except BaseException:
            if self.in_forward:  # else the block has ended it itself
                self.abort()
            raise

    return forward


class SequenceStore:
    """A TVM object that remembers sequences: committed tokens, and pending ones behind them.

    A subclass sets ``_functions`` to the area of the table that has its packed functions.
    """

    _functions: ClassVar[type[ffi.cache] | type[ffi.recurrent]]
    _handle: Any

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def wrap(cls, handle: Any) -> Self:
        """Return the Python view of an object of kvctl's that a model library created.

        Raises
        ------
        TypeError
            If it is another object, such as TVM's own cache, which a library creates that was
            loaded before ``kvctl.install()``.
        """
        return cls(handle)

    @property
    def handle(self) -> Any:
        """The FFI object, for functions that take one."""
        return self._handle

    def __tvm_ffi_object__(self) -> Any:
        """Return the FFI object, so that FFI functions accept the wrapper."""
        return self._handle

    # Sequences.

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence.

        Raises
        ------
        ValueError
            If the id is negative or taken, or there are ``max_sequences`` already.
        """
        ffi.vm_builtin.kv_state_add_sequence(self._handle, seq_id)

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; its checkpoints become invalid.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        ffi.vm_builtin.kv_state_remove_sequence(self._handle, seq_id)

    def __contains__(self, seq_id: int) -> bool:
        return self._functions.has_sequence(self._handle, seq_id)

    def clear(self) -> None:
        """Remove every sequence, also during a step."""
        ffi.vm_builtin.kv_state_clear(self._handle)

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        return self._functions.get_pending_length(self._handle, seq_id)

    # A step.

    @property
    def in_forward(self) -> bool:
        """Whether a step is in flight."""
        return self._functions.is_in_forward(self._handle)

    def end_forward(self) -> None:
        """End the step: tokens of chains are committed, nodes of trees stay pending.

        Raises
        ------
        RuntimeError
            If no step is in flight, or the forward has not written every layer.
        """
        self._functions.end_forward(self._handle)

    # Rolling back.

    def checkpoint(self, seq_id: int) -> Any:
        """Return a point that :meth:`rollback` can return to exactly, in constant time.

        A cache's checkpoint takes no page until an operation would overwrite what it needs. A
        recurrent state's checkpoint holds that state. Both free their memory when Python frees the
        checkpoint.
        """
        return self._functions.checkpoint(self._handle, seq_id)

    def rollback(self, seq_id: int, checkpoint: Any) -> None:
        """Make a sequence exactly what it was; the checkpoint stays valid.

        Raises
        ------
        ValueError
            If the checkpoint is of another sequence, or of one that was removed.
        """
        self._functions.rollback(self._handle, seq_id, checkpoint)
