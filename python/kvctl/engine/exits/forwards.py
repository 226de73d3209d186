"""Embeddings, and the completion of rows that ran a part of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import tvm_ffi

from ..._ffi import functions as ffi
from ..._ffi.integers import to_int64, to_shape
from ..replay import ReplayingCache
from .partial import PartialRows, joined
from .states import asked_layers, layers_to_run

if TYPE_CHECKING:
    from ...cache.paged_kv_cache import PagedKVCache


class ExitForwards:
    """The part of :class:`kvctl.ModelRunner` that goes below tokens and logits."""

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
        return ffi.runner.embed(self._handle, tvm_ffi.Shape(tuple(flat)))

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
        rows = [tvm_ffi.from_dlpack(one) for one in embeddings]
        return ffi.runner.prefill_embeddings(self._handle, to_shape(seq_ids, "seq_ids"), rows)

    def complete(self, seq_ids: Sequence[int], *, hidden: bool | Sequence[int] = False) -> Any:
        """Run all layers of pending rows that ran the first layers only.

        The rows stay pending, and can then be committed. They run again from layer 0.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences whose pending rows came from forwards with ``layers=``.
        hidden : bool or sequence of int
            As for :meth:`forward`.

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
            If a sequence has no rows that wait for their other layers, or not all of them any more.
        """
        waiting = {i: self._partial.waiting(self._cache, i) for i in seq_ids}
        points = {i: self._cache.checkpoint(i) for i in seq_ids}
        self._cache.abort(seq_ids)
        results: dict[int, list[Any]] = {i: [] for i in seq_ids}
        before = self._partial
        self._partial = PartialRows()
        try:
            for i, forwards in waiting.items():
                for one in forwards:
                    found = self.forward(
                        [i],
                        [one.tokens],
                        mask=one.mask,
                        positions=None if one.positions is None else [one.positions],
                        pending=True,
                        hidden=hidden,
                    )
                    results[i].append(found if isinstance(found, tuple) else (found,))
        except BaseException:
            for i, point in points.items():
                self._cache.rollback(i, point)
            self._partial = before
            raise
        self._partial = before
        before.forget(seq_ids)
        rows = [one for i in seq_ids for one in results[i]]
        columns = [joined(column) for column in zip(*rows, strict=True)]
        return columns[0] if hidden is False else (columns[0], columns[1])

    def _states(
        self, seq_ids: Sequence[int], hidden: bool | Sequence[int], layers: range | None
    ) -> tuple[tuple[int, ...], int]:
        """Return the hidden states that are asked for, and how many layers run, 0 being all."""
        until = layers_to_run(layers, self._num_layers)
        self._partial.check(self._cache, seq_ids, until)
        return asked_layers(hidden), until
