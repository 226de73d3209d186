"""A step of a recurrent state: begin, end or abort it, hand over states, commit what it drafted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.convert import to_input, to_tensor
from .._ffi.integers import to_shape
from ..cache.sequences import SequenceStore, step_context
from ..cache.step_arguments import encode_pending
from ..tree import TokenTree

if TYPE_CHECKING:
    from ..mask import Mask

    TreeLike = TokenTree | Mask | Sequence[int]


class RecurrentStep(SequenceStore):
    """The part of :class:`kvctl.RecurrentState` that appends tokens, and keeps or drops them."""

    _handle: ffi.RecurrentStateHandle

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
            The token that each new one follows: one tree for a batch of one, or one per sequence,
            where None is a chain. The parents of the entire pending region may be given instead of
            a tree. The new tokens of a tree are pending.
        pending : bool, optional
            Keep the new tokens pending although they are no tree.

        Raises
        ------
        KeyError, ValueError, IndexError
            If a sequence does not exist, lengths or parents do not fit, or there is a tree and the
            model gives the state after the last token alone.
        kvctl.OutOfPagesError
            If the states that the step keeps do not fit.
        RuntimeError
            If the KV cache that is forwarded with this state holds other lengths.
        """
        ids, lengths = list(seq_ids), list(append_lengths)
        many = list(mask) if isinstance(mask, list | tuple) else [mask]
        if mask is None:
            many = [None] * len(ids)
        parents = [_tree_parents(one) for one in many]
        flag = encode_pending(pending)
        flags = [int(one is not None) if flag < 0 else flag for one in parents]
        ffi.recurrent.begin_forward(
            self._handle,
            to_shape(ids, "seq_ids"),
            to_shape(lengths, "append_lengths"),
            tvm_ffi.Shape(tuple(flags)),
            parents,
        )

    forward = step_context(begin_forward)

    @property
    def num_roots(self) -> int:
        """States that the step's tokens start from: one per sequence, more in grown trees."""
        return ffi.recurrent.get_num_roots(self._handle)

    def get(self, layer: int, state_id: int, out: Any) -> Any:
        """Copy the state that each sequence of the step starts from into ``out`` (batch, ...)."""
        ffi.vm_builtin.rnn_state_get(self._handle, layer, state_id, to_tensor(out, "out"))
        return out

    def get_roots(self, layer: int, state_id: int, out: Any) -> Any:
        """Copy the roots' states into ``out`` (num_roots, ...)."""
        ffi.recurrent.get_roots(self._handle, layer, state_id, to_tensor(out, "out"))
        return out

    def get_rows(self, out: Any, *, steps: bool = True) -> Any:
        """Write which state each new token reads and which it writes to ``out``.

        Parameters
        ----------
        out : tensor, (2, tokens) int32
            Receives sources, then targets. A source s >= 0 is entry s of the states that the model
            computes; s < 0 is root -1 - s.
        steps : bool
            True: one entry per token. False: one per root, updated in place (chains only).
        """
        ffi.recurrent.get_rows(self._handle, steps, to_tensor(out, "out"))
        return out

    def set(self, layer: int, state_id: int, data: Any) -> None:
        """Hand over the state after the last new token of each sequence, (batch, ...)."""
        ffi.vm_builtin.rnn_state_set(self._handle, layer, state_id, to_input(data, "data"))

    def set_steps(self, layer: int, state_id: int, data: Any) -> None:
        """Hand over the state after every new token, (tokens, ...).

        Raises
        ------
        RuntimeError
            If no step is in flight.
        IndexError, ValueError, TypeError
            If there is no such state, or shape or dtype do not fit.
        """
        ffi.recurrent.set_steps(self._handle, layer, state_id, to_input(data, "data"))

    def check_end_forward(self) -> None:
        """Raise what :meth:`end_forward` would raise, and do nothing."""
        ffi.recurrent.check_end_forward(self._handle)

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
        return list(ffi.recurrent.commit(self._handle, *_kept(seq_ids, kept)))

    def plan_commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> list[int]:
        """Return or raise what :meth:`commit` would."""
        return list(ffi.recurrent.plan_commit(self._handle, *_kept(seq_ids, kept)))

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Take back what is not committed.

        During a step, this undoes the step, as if :meth:`begin_forward` had not been called.
        Otherwise it drops the pending nodes of the given sequences, which must be named.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        if self.in_forward:
            ffi.recurrent.abort_forward(self._handle)
        elif seq_ids is not None:
            ids = to_shape(seq_ids, "seq_ids", ordered=False)
            ffi.recurrent.drop_pending(self._handle, ids)


def _tree_parents(mask: Any) -> tvm_ffi.Shape | None:
    """Return the parents of the pending region under a mask, or None for a chain."""
    if mask is None:
        return None
    if isinstance(mask, TokenTree):
        return to_shape(mask._core.row_parents(), "parents")
    if hasattr(mask, "__tvm_ffi_value__"):  # a Mask
        return cast("tvm_ffi.Shape | None", ffi.recurrent.get_mask_parents(mask))
    return to_shape(mask, "parents")


def _kept(
    seq_ids: Sequence[int], kept: Sequence[Iterable[int]]
) -> tuple[tvm_ffi.Shape, list[tvm_ffi.Shape]]:
    return to_shape(seq_ids, "seq_ids"), [to_shape(path, "kept nodes") for path in kept]
