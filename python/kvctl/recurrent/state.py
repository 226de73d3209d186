"""Recurrent states: roll back layers without a KV cache, also to the middle of a chunk.

Every operation either happens or raises and leaves the state as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._ffi import functions as ffi
from .._ffi.convert import to_input
from .step import RecurrentStep

if TYPE_CHECKING:
    from tvm_ffi import Tensor


class RecurrentState(RecurrentStep):
    """The states of a model's recurrent layers for each sequence, with a history.

    :meth:`create` makes one; :meth:`wrap` makes one around the state that a model library created.
    The object itself may be passed to every ``vm.builtin.kv_state_*`` and
    ``vm.builtin.rnn_state_*`` function and to a model's functions.

    If a model computes the state after every token, it passes them to :meth:`set_steps`, and popn,
    commit and fork go back to exactly the given token. Otherwise only the state before each chunk
    is kept. They then go back to that state and return how many tokens have to run again: the kept
    ones from the sequence's new length on.
    """

    _functions = ffi.recurrent

    def __init__(self, handle: ffi.RecurrentStateHandle) -> None:
        if not ffi.recurrent.is_ours(handle):
            raise TypeError(
                f"a kvctl recurrent state is needed, got {type(handle).__name__}: the library may "
                "have been loaded before kvctl.install()"
            )
        super().__init__(handle)
        facts = ffi.recurrent.get_facts(handle)
        self.state_bytes: int = facts.state_bytes
        """Bytes of one kept state, all layers together."""
        self.max_states: int = facts.max_states
        """States that fit."""
        self.max_history: int = facts.max_history
        self.keep_steps: bool = facts.keep_steps
        self.num_layers: int = facts.num_layers
        self.num_states: int = facts.num_states
        """States of a layer."""

    @classmethod
    def create(
        cls,
        *,
        num_layers: int,
        init_values: Sequence[Any],
        max_sequences: int = 32,
        max_history: int = 16,
        max_bytes: int | None = None,
        keep_steps: bool = True,
    ) -> RecurrentState:
        """Create a recurrent state.

        Parameters
        ----------
        num_layers : int
            Recurrent layers of the model; they are alike.
        init_values : sequence of tensors
            Initial value of each state of a layer, of any shape and dtype, on the model's device.
        max_sequences : int
            Sequences that may exist at once.
        max_history : int
            Committed tokens by which a sequence can be rolled back.
        max_bytes : int, optional
            The memory for states: by default twice ``max_history + 1`` states per sequence; larger
            trees need more. When it is full, the oldest history is dropped first. Present and
            pending states and checkpoints are never dropped.
        keep_steps : bool
            If False, keep only the states before and after chunks, although the model gives one per
            token (replay instead of snapshots).

        Raises
        ------
        ValueError
            If a size is out of range.
        """
        return cls(
            ffi.recurrent.create(
                num_layers,
                max_sequences,
                max_history,
                max_bytes or 0,
                keep_steps,
                [to_input(value, "init_values") for value in init_values],
            )
        )

    def __repr__(self) -> str:
        return (
            f"RecurrentState(num_layers={self.num_layers}, num_states={self.num_states}, "
            f"max_history={self.max_history}, free states={self.num_free_states} of "
            f"{self.max_states} x {self.state_bytes} bytes)"
        )

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> int:
        """Make ``child`` what ``parent`` was after its first ``position`` tokens. Copies nothing.

        Parameters
        ----------
        parent, child : int
            An existing sequence and a new id.
        position : int
            Tokens to take over; -1 takes all, pending ones included.

        Returns
        -------
        int
            Tokens that the child has to run again to get to ``position``; 0 where its state is
            kept.

        Raises
        ------
        KeyError, IndexError, ValueError
            If there is no parent, it is shorter, the child exists, or the history is too short.
        """
        return ffi.recurrent.fork_sequence(self._handle, parent, child, position)

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, pending ones counted."""
        return ffi.recurrent.get_sequence_length(self._handle, seq_id)

    def earliest_position(self, seq_id: int) -> int:
        """Return the earliest committed length that a sequence can be rolled back to."""
        return ffi.recurrent.get_earliest_position(self._handle, seq_id)

    @property
    def num_free_states(self) -> int:
        """States that fit beside those kept now."""
        return ffi.recurrent.get_facts(self._handle).num_free_states

    @property
    def num_available_tokens(self) -> int:
        """Tokens that fit beside those of today: any number, which is given as ``sys.maxsize``."""
        return sys.maxsize

    def popn(self, seq_id: int, n: int) -> int:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones.

        Returns
        -------
        int
            Kept tokens that have to run again; 0 where a state is kept at the target.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If it has fewer tokens, or the history does not reach back so far.
        """
        return ffi.recurrent.popn(self._handle, seq_id, n)

    def restart(self, seq_id: int) -> None:
        """Take back every token, however far the kept states reach; checkpoints stay valid.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        ffi.recurrent.restart(self._handle, seq_id)

    def plan_popn(self, seq_id: int, n: int) -> tuple[int, int, int]:
        """Return the target of :meth:`popn`: length, pending tokens, tokens to run again."""
        length, pending, replay = ffi.recurrent.plan_popn(self._handle, seq_id, n)
        return length, pending, replay

    def check_rollback(self, seq_id: int, checkpoint: Any) -> None:
        """Raise what :meth:`rollback` would raise, and do nothing."""
        ffi.recurrent.check_rollback(self._handle, seq_id, checkpoint)

    def get_state(
        self, seq_id: int, layer: int, state_id: int = 0, *, position: int = -1
    ) -> Tensor:
        """Copy the state after ``position`` tokens, pending ones counted; -1: all committed.

        Raises
        ------
        IndexError
            If no state is kept there.
        """
        return ffi.recurrent.get_state(self._handle, seq_id, position, layer, state_id)
