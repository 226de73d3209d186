"""Steps of the cache around forwards of the model, of all layers or a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..cache import PagedKVCache
from ..torch import attention
from ..torch import forward as cache_step
from ..torch.batches import Request, check_batch, check_free_pages, cut_into_steps
from ..torch.evaluation import check_evaluation
from .exits import PartialRows
from .layers import LayerGates
from .probe import Layer
from .rotary import RotaryStates
from .step import Step, entered


class ModelSteps:
    """The part of :class:`kvctl.hf.ModelRunner` that runs the model in a step of the cache."""

    _model: Any
    _cache: PagedKVCache
    _layers: list[Layer]
    _gates: LayerGates
    _rotary: RotaryStates
    _keeps_logits: bool
    _partial: dict[int, PartialRows]

    def complete(self, seq_ids: Sequence[int], *, hidden: bool | Sequence[int] = False) -> Any:
        """Run the other layers of pending rows that ran the first layers only.

        The rows stay pending, and can then be committed. The layers that ran are not computed
        again.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences whose pending rows came from forwards with one ``layers=``.
        hidden : bool or sequence of int
            As for :meth:`forward`; layers that run now.

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
            If a sequence has no rows that wait for their other layers, or those of two sequences
            stopped at different layers.
        """
        ids = check_batch(seq_ids, len(seq_ids), "sequences")
        waiting = [self._waiting(seq_id) for seq_id in ids]
        stops = sorted({rows.until for rows in waiting})
        if len(stops) > 1:
            raise ValueError(f"the sequences' rows stopped before different layers, {stops}")
        rest = range(stops[0], len(self._layers))
        if any(rows.request.positions is not None for rows in waiting):
            for rows in waiting:
                rows.request.positions = rows.positions
        points = {seq_id: self._cache.checkpoint(seq_id) for seq_id in ids}
        by_id = dict(zip(ids, waiting, strict=True))
        requests = [rows.request for rows in waiting]
        results = []
        self._cache.abort(ids)
        try:
            for one in cut_into_steps(requests, self._cache.prefill_chunk_size):
                parts = [by_id[request.seq_id] for request in one]
                step = self._new_step(hidden, rest)
                step.entering = torch.cat([rows.entering for rows in parts])[None]
                with torch.inference_mode():
                    results.append((self._call(step, one, True, parts), step.states()))
        except BaseException:
            for seq_id, point in points.items():
                self._cache.rollback(seq_id, point)
            raise
        for seq_id in ids:
            del self._partial[seq_id]
        logits, states = zip(*results, strict=True)
        return torch.cat(logits) if states[0] is None else (torch.cat(logits), torch.cat(states))

    def _run_all(
        self, requests: list[Request], steps: list[list[Request]], **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run all steps, or none."""
        if len(steps) == 1:
            return self._run(steps[0], **options)
        check_free_pages(self._cache, requests)
        points = {r.seq_id: self._cache.checkpoint(r.seq_id) for r in requests}
        partial = dict(self._partial)
        try:
            logits, states = zip(*(self._run(step, **options) for step in steps), strict=True)
        except BaseException:
            for seq_id, point in points.items():
                self._cache.rollback(seq_id, point)
            self._partial = partial
            raise
        return torch.cat(logits), None if states[0] is None else torch.cat(states)

    def _run(
        self,
        requests: list[Request],
        *,
        pending: bool | None = None,
        hidden: bool | Sequence[int] = False,
        layers: range | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one step of the cache, one forward of the model."""
        step = self._new_step(hidden, layers)
        if layers is not None:
            pending = True
        before = self._rows_before(requests, step.layers)
        with torch.inference_mode():
            logits = self._call(step, requests, pending)
        if step.layers is not None:
            self._partial |= self._kept(step, requests, before)
        return logits, step.states()

    def _call(
        self,
        step: Step,
        requests: list[Request],
        pending: bool | None,
        written: Sequence[PartialRows] = (),
    ) -> torch.Tensor:
        """Forward new tokens in a step; logits (rows asked for, vocab_size).

        `written` is what the rows' first layers held, where those do not run again.
        """
        check_evaluation(self._model)
        lengths = [len(request) for request in requests]
        masks = [request.mask for request in requests]
        positions = [request.positions for request in requests if request.positions is not None]
        tokens = np.concatenate([request.tokens for request in requests])
        with cache_step(
            self._cache,
            [request.seq_id for request in requests],
            lengths,
            mask=masks if any(mask is not None for mask in masks) else None,
            positions=np.concatenate(positions) if positions else None,
            pending=pending,
        ) as places:
            for layer in range(written[0].until if written else 0):
                self._write(layer, written)
            self._rotary.begin()
            rows: Any = 0
            if any(request.logits != "all" for request in requests):
                rows = _logit_rows(requests, lengths).to(places.device)
            # The model drops the other rows before its output layer reads them.
            keeps = self._keeps_logits and not step.wants_final
            options = {"logits_to_keep": rows} if keeps else {}
            with entered(step):
                logits = self._model(
                    input_ids=torch.from_numpy(tokens).to(places.device)[None],
                    position_ids=places[None],
                    use_cache=False,
                    **options,
                ).logits[0]
            if not keeps and isinstance(rows, torch.Tensor):
                logits = logits[rows]
            if step.keeps:
                step.positions = places.cpu().numpy().copy()
        return logits.float()

    def _write(self, layer: int, parts: Sequence[PartialRows]) -> None:
        """Put K and V of rows into a layer; what they would attend to is not needed again."""
        keys = torch.cat([rows.keys[layer] for rows in parts], 1)[None]
        values = torch.cat([rows.values[layer] for rows in parts], 1)[None]
        heads = self._layers[layer].shape[0]
        queries = keys.new_zeros((1, heads, *keys.shape[2:]))
        attention(self._cache, layer, queries, keys, values)

    def _new_step(self, hidden: bool | Sequence[int], layers: range | None) -> Step:
        """Return the step of a forward that may ask for hidden states or a part of the layers.

        Raises
        ------
        ValueError
            If the layers are no range from 0, or of hidden states that do not run.
        NotImplementedError
            If the model's layers cannot be told apart.
        """
        count = len(self._layers)
        step = Step(self._cache)
        if hidden is False and layers is None:
            return step
        if self._gates.layers is None:
            raise NotImplementedError(
                f"{type(self._model).__name__} has no list of its layers, so that hidden= and "
                "layers= cannot be given"
            )
        self._gates.install()
        run = range(count) if layers is None else layers
        if not isinstance(run, range) or run.step != 1 or len(run) == 0 or run.stop > count:
            raise ValueError(f"layers must be range(0, n) with n from 1 to {count}, got {layers!r}")
        if len(run) < count:
            step.layers = run
        if run.stop < count:
            step.keeps = True
            step.hidden[run.stop - 1] = None
        if hidden is True:
            step.wants_final = True
        elif hidden is not False:
            step.asked = tuple(layer + count if layer < 0 else layer for layer in hidden)
            if not step.asked or not set(step.asked) <= set(run):
                raise ValueError(f"hidden must be layers of {run}, which run, got {list(hidden)}")
            step.hidden |= dict.fromkeys(step.asked)
        return step

    def _rows_before(
        self, requests: list[Request], layers: range | None
    ) -> dict[int, PartialRows | None]:
        """Return the partial rows that each sequence has pending.

        Raises
        ------
        ValueError
            If they ran other layers than the new tokens are to run, or `layers` does not start at
            0.
        """
        if layers is not None and layers.start != 0:
            raise ValueError(f"layers must start at 0, got {layers}: complete runs the others")
        before: dict[int, PartialRows | None] = {}
        for request in requests if self._partial or layers is not None else ():
            seq_id = request.seq_id
            count = self._cache.pending_length(seq_id)
            rows = self._partial.get(seq_id)
            if count == 0:
                self._partial.pop(seq_id, None)
            elif (rows.until if rows else None) != (layers.stop if layers else None):
                ran = f"{rows.until} layers" if rows else "all layers"
                raise ValueError(
                    f"sequence {seq_id} has {count} pending rows that ran {ran}; complete, commit "
                    "or abort them before rows that run others"
                )
            before[seq_id] = old = rows.first(count) if rows and count else None
            if old is not None:
                old.tree_with(request)
        return before

    def _kept(
        self, step: Step, requests: list[Request], before: dict[int, PartialRows | None]
    ) -> dict[int, PartialRows]:
        """Return what the sequences' rows hold in the layers that ran."""
        assert step.layers is not None and step.positions is not None
        until, end = step.layers.stop, 0
        entering = step.hidden[until - 1]
        assert entering is not None
        kept = {}
        for request in requests:
            begin, end = end, end + len(request)
            rows = PartialRows(
                until,
                request,
                step.positions[begin:end],
                [key[0, :, begin:end] for key in step.keys],
                [value[0, :, begin:end] for value in step.values],
                entering[0, begin:end],
            )
            old = before[request.seq_id]
            kept[request.seq_id] = rows if old is None else old.grown(rows)
        return kept

    def _waiting(self, seq_id: int) -> PartialRows:
        """Return the pending rows of a sequence that ran the first layers only."""
        count = self._cache.pending_length(seq_id)
        rows = self._partial.get(seq_id)
        if rows is None or count == 0 or count > len(rows):
            raise ValueError(f"sequence {seq_id} has no pending rows that ran a part of the layers")
        return rows.first(count)


def _logit_rows(requests: list[Request], lengths: list[int]) -> torch.Tensor:
    """Return the rows of a step whose logits are asked for."""
    rows: list[int] = []
    end = 0
    for request, length in zip(requests, lengths, strict=True):
        begin, end = end, end + length
        rows += {"all": range(begin, end), "last": range(end - 1, end), "none": ()}[request.logits]
    return torch.tensor(rows, dtype=torch.long)
