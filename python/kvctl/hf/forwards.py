"""The forwards of a transformers model on a kvctl cache: prefill, decode, verify, and any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from .._ffi.integers import to_int64
from ..torch.batches import (
    Request,
    cut_into_steps,
    masked_requests,
    prefill_requests,
    tree_requests,
)
from .model_steps import ModelSteps

if TYPE_CHECKING:
    from ..cache.step_arguments import MaskLike
    from ..tree import TokenTree


class ModelForwards(ModelSteps):
    """The part of :class:`kvctl.hf.ModelRunner` that forwards tokens through the model."""

    _vocab_size: int
    _context: int | None

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
            vocabulary, or a sequence has pending nodes.
        kvctl.OutOfPagesError
            If the prompts do not fit into the cache's free pages.
        """
        requests = prefill_requests(
            self._cache, seq_ids, tokens, vocab_size=self._vocab_size, context=self._context
        )
        steps = self._cut(requests)
        # Of a prompt that is cut, the last part alone has a row of logits.
        for i, pieces in enumerate(steps[:-1]):
            if pieces[-1].seq_id == steps[i + 1][0].seq_id:
                pieces[-1].logits = "none"
        logits, states = self._run_all(requests, steps, hidden=hidden)
        return logits if states is None else (logits, states)

    def decode(self, seq_ids: Sequence[int], tokens: npt.ArrayLike) -> torch.Tensor:
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
        logits: torch.Tensor = self.prefill(seq_ids, list(to_int64(tokens, "tokens")[:, None]))
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
            token is outside the vocabulary, a sequence has pending nodes already, or a row belongs
            to no node (:meth:`forward` takes such rows).
        kvctl.OutOfPagesError
            If the trees do not fit into the cache's free pages.
        """
        requests = tree_requests(
            self._cache, seq_ids, trees, vocab_size=self._vocab_size, context=self._context
        )
        return self._forward(requests, None, hidden, layers)

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
            (B,) positions of the new tokens, each (n_i,), for the model's own rotary or learned
            embedding; by default they follow the mask.
        pending : bool, optional
            Keep the new tokens pending although the mask is no tree.
        hidden : bool or sequence of int
            True: also return what the output layer reads. A sequence of layers: also return the
            outputs of these layers, counted from 0; -1 is the last.
        layers : range, optional
            Run layers ``range(0, n)`` only, then the final norm and the output layer. The new
            tokens are pending; :meth:`complete` runs their other layers.

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
        requests = masked_requests(
            self._cache, seq_ids, tokens, mask, positions, vocab_size=self._vocab_size
        )
        return self._forward(requests, pending, hidden, layers)

    def _forward(
        self,
        requests: list[Request],
        pending: bool | None,
        hidden: bool | Sequence[int],
        layers: range | None,
    ) -> Any:
        """Run requests whose every row has logits."""
        logits, states = self._run_all(
            requests, self._cut(requests), pending=pending, hidden=hidden, layers=layers
        )
        return logits if states is None else (logits, states)

    def _cut(self, requests: list[Request]) -> list[list[Request]]:
        return cut_into_steps(
            requests, self._cache.prefill_chunk_size, one_sequence=self._rotary.one_sequence
        )
