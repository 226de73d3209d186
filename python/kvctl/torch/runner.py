"""A runner of any torch model on a kvctl cache: for generation, drafters and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from .._ffi.integers import to_int64
from ..cache import PagedKVCache
from .batches import (
    Request,
    check_free_pages,
    cut_into_steps,
    masked_requests,
    prefill_requests,
    tree_requests,
)
from .evaluation import check_evaluation, put_into_evaluation
from .step import forward as cache_step
from .tensors import cache_device

if TYPE_CHECKING:
    from ..cache.step_arguments import MaskLike
    from ..text import ModelText
    from ..tree import TokenTree


class ModelRunner:
    """Runs a torch model whose attention is :class:`kvctl.torch.Attention`.

    It is a :class:`kvctl.engine.Runner`: :func:`kvctl.generate` and every drafter take it. Each
    forward happens for all sequences that it names, or raises and leaves the cache as it was.

    Parameters
    ----------
    model : callable
        ``model(tokens, positions)``: the new tokens and their positions, (n,) int64, the sequences
        of a step one after another; it returns their logits (n, vocab_size). Run in inference mode.
        A module is put into evaluation mode, and refused where it has been put back since.
    cache : PagedKVCache
        The cache that the model's attention fits.
    vocab_size : int
        Length of a row of logits.
    context_window_size : int, optional
        Tokens that a sequence may have; None where the model sets no limit.
    stop_tokens : iterable of int
        The tokens that end the model's turn.
    text : ModelText, optional
        The model's tokenizer and chat template, whose stop tokens count too.

    Examples
    --------
    >>> runner = kvctl.torch.ModelRunner(model, cache, vocab_size=32000)
    >>> kvctl.generate(runner, prompt, drafter=kvctl.draft.LookupDrafter()).tokens
    """

    #: Of the optional abilities of a runner it has none.
    abilities: frozenset[str] = frozenset()
    #: Whole sequences have no window.
    sliding_window_size = None

    def __init__(
        self,
        model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        cache: PagedKVCache,
        *,
        vocab_size: int,
        context_window_size: int | None = None,
        stop_tokens: Iterable[int] = (),
        text: ModelText | None = None,
    ) -> None:
        put_into_evaluation(model)
        self.model = model
        self.cache = cache
        self.vocab_size = vocab_size
        self.context_window_size = context_window_size
        self.stop_tokens = frozenset(stop_tokens) | (text.stop_tokens if text else frozenset())
        self._text = text

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most; :meth:`prefill` takes more, in chunks."""
        return self.cache.prefill_chunk_size

    @property
    def text(self) -> ModelText:
        """The model's tokenizer, chat template and stops.

        Raises
        ------
        FileNotFoundError
            If the runner was made without.
        """
        if self._text is None:
            raise FileNotFoundError(
                "this runner has no tokenizer: give kvctl.torch.ModelRunner a kvctl.text.ModelText"
            )
        return self._text

    def prefill(self, seq_ids: Sequence[int], tokens: Sequence[npt.ArrayLike]) -> torch.Tensor:
        """Append prompts of any lengths, in chunks; logits (B, vocab_size) behind each prompt.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a prompt is empty or goes beyond the context window, a token is outside the
            vocabulary, or a sequence has pending nodes.
        kvctl.OutOfPagesError
            If the prompts do not fit into the cache's free pages.
        """
        requests = prefill_requests(
            self.cache,
            seq_ids,
            tokens,
            vocab_size=self.vocab_size,
            context=self.context_window_size,
        )
        return self._run_all(requests)

    def decode(self, seq_ids: Sequence[int], tokens: npt.ArrayLike) -> torch.Tensor:
        """Append one token to each sequence; logits (B, vocab_size). Raises as :meth:`prefill`."""
        return self.prefill(seq_ids, list(to_int64(tokens, "tokens")[:, None]))

    def verify(
        self, seq_ids: Sequence[int], trees: TokenTree | Sequence[TokenTree]
    ) -> torch.Tensor:
        """Forward one tree for each sequence, its rows pending; logits (rows, vocab_size).

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a tree is larger than the prefill chunk or goes beyond the context window, a token is
            outside the vocabulary, a sequence has pending nodes already, or a row belongs to no
            node.
        kvctl.OutOfPagesError
            If the trees do not fit into the cache's free pages.
        """
        requests = tree_requests(
            self.cache,
            seq_ids,
            trees,
            vocab_size=self.vocab_size,
            context=self.context_window_size,
        )
        return self._run_all(requests)

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[npt.ArrayLike],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Sequence[npt.ArrayLike] | None = None,
        pending: bool | None = None,
    ) -> torch.Tensor:
        """Forward any new tokens under any masks; logits (new tokens, vocab_size).

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : sequence of array-like of int
            (B,) new tokens of each, each (n_i,) with n_i at least 1.
        mask, positions, pending
            As of :meth:`kvctl.PagedKVCache.begin_forward`, positions as one list per sequence.

        Raises
        ------
        KeyError, ValueError, kvctl.OutOfPagesError
            As :meth:`verify`, and what ``begin_forward`` raises.
        """
        requests = masked_requests(
            self.cache, seq_ids, tokens, mask, positions, vocab_size=self.vocab_size
        )
        return self._run_all(requests, pending)

    def _run_all(self, requests: list[Request], pending: bool | None = None) -> torch.Tensor:
        """Run all steps that requests need, or none."""
        steps = cut_into_steps(requests, self.prefill_chunk_size)
        if len(steps) == 1:
            return self._run(steps[0], pending)
        check_free_pages(self.cache, requests)
        points = {one.seq_id: self.cache.checkpoint(one.seq_id) for one in requests}
        for step, following in pairwise(steps):
            last, rest = step[-1], following[0]
            if last.seq_id == rest.seq_id and last.logits == "last":
                last.logits = "none"  # of a prompt that is cut, only the last part has a row
        try:
            return torch.cat([self._run(step, pending) for step in steps])
        except BaseException:
            for seq_id, point in points.items():
                self.cache.rollback(seq_id, point)
            raise

    @torch.inference_mode()
    def _run(self, requests: list[Request], pending: bool | None) -> torch.Tensor:
        """Run one step; float32 logits of the rows that are asked for."""
        check_evaluation(self.model)
        lengths = [len(request) for request in requests]
        masks = [request.mask for request in requests]
        places = [request.positions for request in requests if request.positions is not None]
        tokens = torch.from_numpy(np.concatenate([request.tokens for request in requests]))
        with cache_step(
            self.cache,
            [request.seq_id for request in requests],
            lengths,
            mask=masks if any(mask is not None for mask in masks) else None,
            positions=np.concatenate(places) if places else None,
            pending=pending,
        ) as positions:
            logits = self.model(tokens.to(cache_device(self.cache)), positions)
            if logits.shape != (len(tokens), self.vocab_size):
                raise ValueError(
                    f"the model must return logits {(len(tokens), self.vocab_size)} for "
                    f"{len(tokens)} new tokens, got {tuple(logits.shape)}"
                )
        parts = zip(requests, logits.split(lengths), strict=True)
        wanted = {"all": slice(None), "last": slice(-1, None), "none": slice(0)}
        return torch.cat([rows[wanted[request.logits]] for request, rows in parts]).float()
