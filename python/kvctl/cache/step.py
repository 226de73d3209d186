"""A step of a paged KV cache: begin, end or abort it, and commit what it drafted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._ffi import functions as ffi
from .._ffi.integers import to_shape
from .sequences import SequenceStore, step_context
from .step_arguments import encode_masks, encode_pending

if TYPE_CHECKING:
    from tvm_ffi import Tensor

    from .step_arguments import MaskLike


class CacheStep(SequenceStore):
    """The part of :class:`kvctl.PagedKVCache` that appends tokens, and keeps or drops them."""

    _handle: ffi.PagedKVCacheHandle

    def begin_forward(
        self,
        seq_ids: Sequence[int],
        append_lengths: Sequence[int],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Any = None,
        pending: bool | None = None,
    ) -> None:
        """Begin a step that appends tokens to some sequences.

        Parameters
        ----------
        seq_ids : sequence of int
            The sequences, each at most once.
        append_lengths : sequence of int
            New tokens of each, at least 1.
        mask : Mask or sequence of Mask, optional
            The columns that each new token attends to: one mask for a batch of one, or one per
            sequence, where None is causal. A :class:`kvctl.TokenTree` means the mask of its rows.
            The new tokens of a tree are pending; its parents index the entire pending region.
        positions : sequence of int, optional
            Rotary positions of all new tokens, sequence after sequence. By default they follow the
            mask: depth in a tree. Windows measure these positions once the tokens are committed, so
            they must not descend in a sequence with a sliding window or under a mask of one. In
            this step, windows measure new tokens as if they followed on.
        pending : bool, optional
            Keep the new tokens pending although the mask is no tree. A step that attends in some
            layers only needs this; its tokens can be dropped, not committed.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If lengths, mask or positions do not fit, or a sequence has pending nodes and the step
            does not add to them.
        kvctl.OutOfPagesError
            If there are too few free pages.
        """
        ffi.cache.begin_forward(
            self._handle,
            to_shape(seq_ids, "seq_ids"),
            to_shape(append_lengths, "append_lengths"),
            encode_masks(mask),
            None if positions is None else to_shape(positions, "positions"),
            encode_pending(pending),
        )

    forward = step_context(begin_forward)

    def query_positions(self) -> Tensor:
        """Rotary positions of the step's new tokens, int32 (total_new,).

        The tensor belongs to the cache: the next step overwrites it.
        """
        return ffi.vm_builtin.attention_kv_cache_get_query_positions(self._handle)

    def commit(
        self,
        seq_ids: Sequence[int],
        kept: Sequence[Iterable[int]],
        *,
        any_nodes: bool = False,
    ) -> None:
        """Commit the kept pending nodes of each sequence and drop its others.

        Parameters
        ----------
        seq_ids : sequence of int
            Any sequences, in any order.
        kept : sequence of sequences of int
            Indices into each pending region, ascending, whose positions continue the sequence:
            a path from the committed context, or nothing. Nodes that came under a mask that is
            neither causal nor a tree have no path: they may follow any others.
        any_nodes : bool, optional
            Keep nodes of a tree that are no path, too. Their K and V were computed behind tokens
            that are dropped, so that later logits are not those of the tokens that are left.

        Raises
        ------
        KeyError, IndexError, ValueError
            If a sequence or a node does not exist, or nodes are no continuation or no path.
        kvctl.OutOfPagesError
            If pages shared with a fork would have to be copied and none is free.
        """
        ffi.cache.commit(
            self._handle,
            to_shape(seq_ids, "seq_ids"),
            [to_shape(nodes, "kept nodes") for nodes in kept],
            bool(any_nodes),
        )

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Take back what is not committed.

        During a step, this undoes the step, as if :meth:`begin_forward` had not been called.
        Otherwise it drops the pending nodes of the given sequences, of all by default.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        if self.in_forward:
            ffi.cache.abort_forward(self._handle)
        else:
            ffi.cache.drop_pending(
                self._handle,
                None if seq_ids is None else to_shape(seq_ids, "seq_ids", ordered=False),
            )
