"""The forwards of a model on a kvctl cache: prefill, decode, verify, and any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from ..._ffi import functions as ffi
from ..._ffi.integers import to_int64, to_shape
from ...cache.step_arguments import encode_masks, encode_pending
from ...mask import Mask
from ...tree import TokenTree, as_trees, encode_trees
from .exits.forwards import ExitForwards
from .exits.states import logits_and_hidden
from .replay import ReplayingCache

if TYPE_CHECKING:
    from ...cache.paged_kv_cache import PagedKVCache
    from ...cache.step_arguments import MaskLike


class ModelForwards(ExitForwards):
    """The part of :class:`kvctl.ModelRunner` that forwards tokens through the model."""

    _handle: ffi.ModelRunnerHandle
    _cache: PagedKVCache | ReplayingCache

    def prefill(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[npt.ArrayLike],
        *,
        hidden: bool | Sequence[int] = False,
    ) -> Any:
        """Append prompts of any lengths, in chunks.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : sequence of array-like of int
            (B,) prompts, each (n_i,) with n_i at least 1.
        hidden
            As for :meth:`forward`: also return hidden states of all new tokens.

        Returns
        -------
        tensor
            (B, vocab_size) float32, what follows the last token of each prompt. With ``hidden`` a
            pair, the hidden states as :meth:`forward` returns them.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a prompt is empty or goes beyond the model's context window, a token is outside the
            vocabulary, or a sequence has pending nodes. A sequence with a sliding window has no
            maximal length.
        kvctl.OutOfPagesError
            If the prompts do not fit into the cache's free pages.
        NotImplementedError
            If the library was not compiled for these layers.
        """
        lengths, flat = _flatten(tokens, "tokens")
        if hidden is not False:
            asked, _ = self._states(seq_ids, hidden, None)
            states = self._calls.prefill_states(
                self._handle, to_shape(seq_ids, "seq_ids"), lengths, flat, tvm_ffi.Shape(asked)
            )
            self._record(seq_ids, lengths, flat)
            return logits_and_hidden(states, hidden)
        logits = self._calls.prefill(self._handle, to_shape(seq_ids, "seq_ids"), lengths, flat)
        self._record(seq_ids, lengths, flat)
        return logits

    def decode(self, seq_ids: Sequence[int], tokens: npt.ArrayLike) -> tvm_ffi.Tensor:
        """Append one token to each sequence.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : array-like of int
            (B,) one token each.

        Returns
        -------
        tensor
            (B, vocab_size) float32.

        Raises
        ------
        KeyError, ValueError, kvctl.OutOfPagesError
            As :meth:`prefill`.
        """
        flat = to_int64(tokens, "tokens").tolist()
        logits: tvm_ffi.Tensor = self._calls.decode(
            self._handle, to_shape(seq_ids, "seq_ids"), tvm_ffi.Shape(tuple(flat))
        )
        self._record(seq_ids, [1] * len(flat), flat)
        return logits

    def verify(
        self,
        seq_ids: Sequence[int],
        trees: TokenTree | Sequence[TokenTree],
        *,
        hidden: bool | Sequence[int] = False,
        layers: range | None = None,
    ) -> Any:
        """Forward one tree of drafts per sequence and leave its rows pending.

        Commit what was accepted with ``runner.cache.commit(seq_ids, kept)``, or drop everything
        with ``runner.cache.abort(seq_ids)``, before the next tree. To grow a pending tree instead,
        use :meth:`forward` with ``Mask.tree(parents)``: there a parent is a pending node.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        trees : TokenTree or sequence of TokenTree
            (B,) trees; their node 0 is the last emitted token, which the cache does not hold yet.
        hidden, layers
            As for :meth:`forward`.

        Returns
        -------
        tensor
            (rows of all trees, vocab_size) float32, tree after tree. Row i of a tree says what
            follows the nodes in row i. With ``hidden``, see :meth:`forward`.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a tree is larger than the prefill chunk or goes beyond the model's context window, a
            token is outside the vocabulary, a sequence has pending nodes already, a row belongs to
            no node (:meth:`forward` takes such rows), or a tree that is no chain meets recurrent
            layers that give the state after the last token alone.
        kvctl.OutOfPagesError
            If the trees do not fit into the cache's free pages.
        NotImplementedError
            If the library does not export ``batch_verify``, or was not compiled for these layers.
        """
        trees = as_trees(trees)
        code: Any
        code, _ = encode_trees(trees)
        ids = to_shape(seq_ids, "seq_ids")
        asked, until = self._states(seq_ids, hidden, layers)
        if not asked and not until:
            logits: Any = self._calls.verify(self._handle, ids, code)
        else:
            states = self._calls.verify_states(self._handle, ids, code, tvm_ffi.Shape(asked), until)
            logits = logits_and_hidden(states, hidden)
            self._partial.record(seq_ids, until, [tree.num_rows for tree in trees], states[2])
        if isinstance(self._cache, ReplayingCache):
            for seq_id, tree in zip(seq_ids, trees, strict=True):
                by_row = dict(zip(tree.rows.tolist(), tree.tokens.tolist(), strict=True))
                self._cache.record(seq_id, [by_row[row] for row in range(tree.num_rows)])
        return logits

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[npt.ArrayLike],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Sequence[npt.ArrayLike] | None = None,
        pending: bool | None = None,
        hidden: bool | Sequence[int] = False,
        layers: range | None = None,
    ) -> Any:
        """Forward any new tokens under any masks.

        Without a mask, more tokens than the prefill chunk run in chunks; with one they must fit it.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : sequence of array-like of int
            (B,) new tokens of each, each (n_i,) with n_i at least 1.
        mask : Mask or sequence of Mask, optional
            As for ``PagedKVCache.begin_forward``: one mask for a batch of one, or one per sequence.
            A :class:`kvctl.TokenTree` counts its parents from its own root, so no nodes may be
            pending; a ``Mask.tree`` grows what is pending.
        positions : sequence of array-like of int, optional
            (B,) rotary positions of the new tokens, each (n_i,); by default they follow the mask.
        pending : bool, optional
            Keep the new tokens pending although the mask is no tree.
        hidden : bool or sequence of int
            True: also return what the output layer reads. A sequence of layers: also return the
            outputs of these layers, counted from 0. ``kvctl compile --hidden-layers`` names the
            layers that a library gives; MLC-LLM's libraries with ``*_to_last_hidden_states`` give
            what the output layer reads.
        layers : range, optional
            Run layers ``range(0, n)`` only, then the final norm and the output layer, for an n that
            ``kvctl compile --exit-layers`` named. The new tokens are pending, and cannot be
            committed before :meth:`complete`.

        Returns
        -------
        tensor
            (all new tokens, vocab_size) float32, sequence after sequence. With ``hidden`` a pair:
            the logits, and (all new tokens, number of layers asked for, hidden_size) in the
            model's type.

        Raises
        ------
        KeyError, ValueError, kvctl.OutOfPagesError, NotImplementedError
            As :meth:`verify`, and what ``begin_forward`` raises.
        """
        lengths, flat = _flatten(tokens, "tokens")
        self._check_trees(seq_ids, mask)
        asked, until = self._states(seq_ids, hidden, layers)
        states = self._calls.forward_states(
            self._handle,
            to_shape(seq_ids, "seq_ids"),
            lengths,
            flat,
            encode_masks(mask),
            None if positions is None else _flatten(positions, "positions")[1],
            encode_pending(True if until else pending),
            tvm_ffi.Shape(asked),
            until,
        )
        logits = logits_and_hidden(states, hidden)
        masks: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask] * len(lengths)
        self._partial.record(seq_ids, until, lengths, states[2])
        special = [positions is not None or not _runs_again(one) for one in masks]
        self._record(seq_ids, lengths, flat, special)
        return logits

    def _check_trees(
        self, seq_ids: Sequence[int], mask: MaskLike | Sequence[MaskLike | None] | None
    ) -> None:
        """Refuse a tree of drafts for a sequence that has pending nodes."""
        masks = mask if isinstance(mask, Sequence) else [mask]
        for seq_id, one in zip(seq_ids, masks, strict=False):  # lengths are checked in C++
            if isinstance(one, TokenTree) and (n := self._cache.pending_length(seq_id)) > 0:
                raise ValueError(
                    f"sequence {seq_id} has {n} pending nodes; commit or abort them before another "
                    "tree, or grow their tree with Mask.tree, whose parents are pending nodes"
                )

    def _run_again(self, seq_ids: list[int], tokens: list[list[int]]) -> None:
        """Run tokens again without returning their logits."""
        lengths, flat = _flatten(tokens, "tokens")
        self._calls.prefill(self._handle, to_shape(seq_ids, "seq_ids"), lengths, flat)

    def _record(
        self,
        seq_ids: Sequence[int],
        lengths: Sequence[int],
        flat: Iterable[int],
        special: Sequence[bool] | None = None,
    ) -> None:
        """Keep the tokens that ran in a cache that may have to run some of them again."""
        if isinstance(self._cache, ReplayingCache):
            rest = iter(flat)
            flags = [False] * len(lengths) if special is None else special
            for seq_id, length, flag in zip(seq_ids, lengths, flags, strict=True):
                self._cache.record(seq_id, [next(rest) for _ in range(length)], special=flag)


def _runs_again(mask: MaskLike | None) -> bool:
    """Return whether tokens under a mask, or those of them that stay, are the same as a prompt."""
    if mask is None or isinstance(mask, TokenTree):
        return True
    return mask.tree_parents is not None or mask == Mask.causal()


def _flatten(lists: Sequence[npt.ArrayLike], name: str) -> tuple[tvm_ffi.Shape, tvm_ffi.Shape]:
    """Return lists of integers, one per sequence, as their lengths and all their values."""
    if any(isinstance(one, Integral) for one in lists):
        flat = [one.item() if isinstance(one, np.integer) else one for one in lists]
        raise ValueError(f"{name} must be a list for each sequence: [{flat}], say, and not {flat}")
    parts = [to_int64(one, name).tolist() for one in lists]
    return tvm_ffi.Shape(tuple(map(len, parts))), tvm_ffi.Shape(tuple(chain.from_iterable(parts)))
