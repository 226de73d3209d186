"""Recurrent states: roll layers without a KV cache back, into the middle of a chunk too.

Every operation either happens or raises and leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tvm_ffi

from .convert import to_shape, to_tensor
from .sequences import SequenceStore
from .tree import TokenTree

if TYPE_CHECKING:
    from .mask import Mask

    TreeLike = TokenTree | Mask | Sequence[int]

_ffi = tvm_ffi.get_global_func

_create = _ffi("kvctl.recurrent.create")
_begin_forward = _ffi("kvctl.recurrent.begin_forward")
_check_end_forward = _ffi("kvctl.recurrent.check_end_forward")
_abort_forward = _ffi("kvctl.recurrent.abort_forward")
_num_roots = _ffi("kvctl.recurrent.num_roots")
_get_roots = _ffi("kvctl.recurrent.get_roots")
_get_rows = _ffi("kvctl.recurrent.get_rows")
_set_steps = _ffi("kvctl.recurrent.set_steps")
_fork_sequence = _ffi("kvctl.recurrent.fork_sequence")
_popn = _ffi("kvctl.recurrent.popn")
_plan_popn = _ffi("kvctl.recurrent.plan_popn")
_commit = _ffi("kvctl.recurrent.commit")
_plan_commit = _ffi("kvctl.recurrent.plan_commit")
_drop_pending = _ffi("kvctl.recurrent.drop_pending")
_check_rollback = _ffi("kvctl.recurrent.check_rollback")
_sequence_length = _ffi("kvctl.recurrent.sequence_length")
_earliest_position = _ffi("kvctl.recurrent.earliest_position")
_get_state = _ffi("kvctl.recurrent.get_state")
_facts = _ffi("kvctl.recurrent.facts")
_mask_parents = _ffi("kvctl.recurrent.mask_parents")
_is_ours = _ffi("kvctl.recurrent.is_ours")
_get = _ffi("vm.builtin.rnn_state_get")
_set = _ffi("vm.builtin.rnn_state_set")


def _tree_parents(mask: Any) -> Any:
    """Return the parents of the pending region under a mask, or None for a chain."""
    if mask is None:
        return None
    if isinstance(mask, TokenTree):
        return to_shape(mask._core.row_parents())
    if hasattr(mask, "__tvm_ffi_value__"):  # a Mask
        return _mask_parents(mask)
    return to_shape(mask)


class RecurrentState(SequenceStore, area="recurrent"):
    """What the recurrent layers of a model remember of each sequence, with a history.

    Made by :meth:`create`, or around the state that a model library created (:meth:`wrap`). The
    object itself may be handed to every ``vm.builtin.kv_state_*`` and ``vm.builtin.rnn_state_*``
    function and to a model's functions.

    A model that computes the state after every token hands them over (:meth:`set_steps`); popn,
    commit and fork then land exactly where they are asked to. Of a model that does not, the state
    before each chunk is kept: they land there and return how many tokens have to run again, which
    are the kept ones from the sequence's new length on.
    """

    def __init__(self, handle: Any) -> None:
        if not _is_ours(handle):
            raise TypeError(
                f"a kvctl recurrent state is needed, got {type(handle).__name__}: the library may "
                "have been loaded before kvctl.install()"
            )
        super().__init__(handle)
        facts = _facts(handle)
        self.state_bytes: int = facts[0]
        """Bytes of one kept state, all layers together."""
        self.num_slots: int = facts[1]
        """States that fit."""
        self.max_history: int = facts[3]
        self.keep_steps: bool = bool(facts[4])
        self.num_layers: int = facts[5]
        self.num_states: int = facts[6]
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
            The memory for states: twice ``max_history + 1`` of them per sequence by default, which
            trees larger than that need more of. Where it runs short, the oldest history goes first;
            present and pending states and checkpoints never do.
        keep_steps : bool
            False: keep states only before and after chunks, though the model gives one per token
            (replay instead of snapshots).

        Raises
        ------
        ValueError
            If a size makes no sense.
        """
        return cls(
            _create(
                num_layers,
                max_sequences,
                max_history,
                max_bytes or 0,
                keep_steps,
                [to_tensor(value) for value in init_values],
            )
        )

    def __repr__(self) -> str:
        return (
            f"RecurrentState(num_layers={self.num_layers}, num_states={self.num_states}, "
            f"max_history={self.max_history}, free slots={self.num_free_slots} of "
            f"{self.num_slots} x {self.state_bytes} bytes)"
        )

    # Sequences.

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
        return int(_fork_sequence(self._handle, parent, child, position))

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, pending ones counted."""
        return int(_sequence_length(self._handle, seq_id))

    def earliest_position(self, seq_id: int) -> int:
        """Return the earliest committed length that a sequence can be rolled back to."""
        return int(_earliest_position(self._handle, seq_id))

    @property
    def num_free_slots(self) -> int:
        """States that fit beside those kept now."""
        return int(_facts(self._handle)[2])

    # A step.

    def begin_forward(
        self,
        seq_ids: Sequence[int],
        append_lengths: Sequence[int],
        *,
        mask: TreeLike | Sequence[TreeLike | None] | None = None,
        pending: bool | None = None,
    ) -> None:
        """Begin a step that appends tokens to some sequences.

        Parameters
        ----------
        seq_ids : sequence of int
            The sequences, each at most once.
        append_lengths : sequence of int
            New tokens of each, at least 1.
        mask : TokenTree, Mask, or sequence of them, optional
            Which token each new one follows: one tree for a batch of one, or one per sequence, None
            being a chain. Instead of a tree, the parents of the whole pending region will do. The
            new tokens of a tree are pending.
        pending : bool, optional
            Keep the new tokens pending although they are no tree.

        Raises
        ------
        KeyError, ValueError, IndexError
            If a sequence does not exist, or lengths or parents do not fit.
        kvctl.OutOfPagesError
            If the states that the step keeps do not fit.
        """
        ids, lengths = list(seq_ids), list(append_lengths)
        many = list(mask) if isinstance(mask, list | tuple) else [mask]
        if mask is None:
            many = [None] * len(ids)
        parents = [_tree_parents(one) for one in many]
        flags = [one is not None if pending is None else pending for one in parents]
        _begin_forward(self._handle, to_shape(ids), to_shape(lengths), to_shape(flags), parents)

    @property
    def num_roots(self) -> int:
        """States that the step's tokens start from: one per sequence, more in grown trees."""
        return int(_num_roots(self._handle))

    def get(self, layer: int, state_id: int, out: Any) -> Any:
        """Copy the state that each sequence of the step starts from into ``out`` (batch, ...)."""
        _get(self._handle, layer, state_id, to_tensor(out))
        return out

    def get_roots(self, layer: int, state_id: int, out: Any) -> Any:
        """Copy the roots' states into ``out`` (num_roots, ...)."""
        _get_roots(self._handle, layer, state_id, to_tensor(out))
        return out

    def get_rows(self, out: Any, *, steps: bool = True) -> Any:
        """Which state each new token reads, and which it writes.

        Parameters
        ----------
        out : tensor, (2, tokens) int32
            Receives sources, then targets. A source s >= 0 is entry s of the states that the model
            computes; s < 0 is root -1 - s.
        steps : bool
            True: one entry per token. False: one per root, updated in place (chains only).
        """
        _get_rows(self._handle, steps, to_tensor(out))
        return out

    def set(self, layer: int, state_id: int, data: Any) -> None:
        """Hand over the state after the last new token of each sequence, (batch, ...)."""
        _set(self._handle, layer, state_id, to_tensor(data))

    def set_steps(self, layer: int, state_id: int, data: Any) -> None:
        """Hand over the state after every new token, (tokens, ...).

        Raises
        ------
        RuntimeError
            If no step is in flight.
        IndexError, ValueError, TypeError
            If there is no such state, or shape or dtype do not fit.
        """
        _set_steps(self._handle, layer, state_id, to_tensor(data))

    def check_end_forward(self) -> None:
        """Raise what :meth:`end_forward` would raise, and do nothing."""
        _check_end_forward(self._handle)

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> list[int]:
        """Commit a path of each sequence's pending region and drop its other nodes.

        Parameters
        ----------
        seq_ids : sequence of int
            Any sequences, in any order.
        kept : sequence of sequences of int
            Nodes from the committed state downwards, each the child of the one before it.

        Returns
        -------
        list of int
            For each sequence how many of its kept tokens, the last ones, have to run again.

        Raises
        ------
        KeyError, IndexError, ValueError
            If a sequence or a node does not exist, or the nodes are no path.
        """
        return list(_commit(self._handle, to_shape(seq_ids), [to_shape(path) for path in kept]))

    def plan_commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> list[int]:
        """Return or raise what :meth:`commit` would."""
        return list(
            _plan_commit(self._handle, to_shape(seq_ids), [to_shape(path) for path in kept])
        )

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Take back what is not committed.

        During a step: the whole step, as if :meth:`begin_forward` had not been called. Otherwise:
        the pending nodes of the given sequences, which must be named.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        if self.in_forward:
            _abort_forward(self._handle)
        elif seq_ids is not None:
            _drop_pending(self._handle, to_shape(seq_ids))

    @contextmanager
    def forward(
        self,
        seq_ids: Sequence[int],
        append_lengths: Sequence[int],
        *,
        mask: TreeLike | Sequence[TreeLike | None] | None = None,
        pending: bool | None = None,
    ) -> Iterator[None]:
        """Run a step as a context: ended when the block ends, aborted when it raises."""
        self.begin_forward(seq_ids, append_lengths, mask=mask, pending=pending)
        try:
            yield
            self.end_forward()
        except BaseException:
            self.abort()
            raise

    # Rolling back.

    def popn(self, seq_id: int, n: int) -> int:
        """Take back the last ``n`` tokens: pending nodes, the latest first, then committed ones.

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
        return int(_popn(self._handle, seq_id, n))

    def plan_popn(self, seq_id: int, n: int) -> tuple[int, int, int]:
        """Return where :meth:`popn` would land: length, pending tokens, tokens to run again."""
        length, pending, replay = _plan_popn(self._handle, seq_id, n)
        return length, pending, replay

    def check_rollback(self, seq_id: int, checkpoint: Any) -> None:
        """Raise what :meth:`rollback` would raise, and do nothing."""
        _check_rollback(self._handle, seq_id, checkpoint)

    def get_state(self, seq_id: int, layer: int, state_id: int = 0, *, position: int = -1) -> Any:
        """Copy the state after ``position`` tokens, pending ones counted; -1: all committed.

        Raises
        ------
        IndexError
            If no state is kept there.
        """
        return _get_state(self._handle, seq_id, position, layer, state_id)
