"""Embeddings, and the completion of rows that ran a part of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import tvm_ffi

from ...._ffi import functions as ffi
from ...._ffi.integers import to_int64, to_shape
from ..replay import ReplayingCache
from .partial import PartialRows
from .states import asked_layers, layers_to_run, logits_and_hidden

if TYPE_CHECKING:
    from ....cache.paged_kv_cache import PagedKVCache


class ExitForwards:
    """The part of :class:`kvctl.ModelRunner` that goes below tokens and logits."""

    #: The packed functions that run the model; workers have others of the same names.
    _calls: Any = ffi.runner
    _handle: ffi.ModelRunnerHandle
    _cache: PagedKVCache | ReplayingCache
    _partial: PartialRows
    _num_layers: int | None
    forward: Any

    def embed(self, tokens: npt.ArrayLike) -> tvm_ffi.Tensor:
        """Return the rows that enter layer 0.

        Parameters
        ----------
        tokens : array-like of int
            (n,) tokens, at least one.

        Returns
        -------
        tensor
            (n, hidden_size) of the model's type.

        Raises
        ------
        ValueError
            If there are none, or one is outside the vocabulary.
        """
        flat = to_int64(tokens, "tokens").tolist()
        rows: tvm_ffi.Tensor = self._calls.embed(self._handle, tvm_ffi.Shape(tuple(flat)))
        return rows

    def prefill_embeddings(
        self, seq_ids: Sequence[int], embeddings: Sequence[Any]
    ) -> tvm_ffi.Tensor:
        """Append prompts that are rows of embeddings, in chunks: images, say, or soft prompts.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        embeddings : sequence of tensor
            (B,) contiguous tensors, each (n_i, hidden_size), of the type of :meth:`embed`, on any
            device.

        Returns
        -------
        tensor
            (B, vocab_size) float32, what follows the last row of each prompt.

        Raises
        ------
        KeyError, kvctl.OutOfPagesError
            As :meth:`prefill`.
        ValueError, TypeError
            If a tensor is none of those.
        NotImplementedError
            If the model has recurrent layers: they may have to run tokens again.
        """
        rows, ids = [tvm_ffi.from_dlpack(one) for one in embeddings], to_shape(seq_ids, "seq_ids")
        logits: tvm_ffi.Tensor = self._calls.prefill_embeddings(self._handle, ids, rows)
        return logits

    def complete(self, seq_ids: Sequence[int], *, hidden: bool | Sequence[int] = False) -> Any:
        """Run the other layers of pending rows that ran the first layers only.

        The rows stay where they are, and can then be committed. The layers that ran do not run
        again.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences whose pending rows came from forwards with one ``layers=``, all together
            at most the prefill chunk.
        hidden : bool or sequence of int
            True: also return what the output layer reads.

        Returns
        -------
        tensor
            (pending rows of all sequences, vocab_size) float32, and the hidden states where they
            were asked for: what a forward of all layers would have returned.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a sequence has no rows that wait for their other layers, those of two stopped at
            different layers, or came under a mask that is no tree.
        NotImplementedError
            If the outputs of other layers are asked for.
        """
        if not isinstance(hidden, bool):
            raise NotImplementedError("complete gives what the output layer reads: hidden=True")
        until, rows = self._partial.waiting(self._cache, seq_ids)
        ids = to_shape(seq_ids, "seq_ids")
        states = self._calls.complete(self._handle, ids, tvm_ffi.from_dlpack(rows), until)
        self._partial.forget(seq_ids)
        return logits_and_hidden(states, hidden)

    def _states(
        self, seq_ids: Sequence[int], hidden: bool | Sequence[int], layers: range | None
    ) -> tuple[tuple[int, ...], int]:
        """Return the hidden states that are asked for, and how many layers run, 0 being all."""
        until = layers_to_run(layers, self._num_layers)
        self._partial.check(self._cache, seq_ids, until)
        return asked_layers(hidden), until
