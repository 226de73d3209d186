"""A compiled language model on a kvctl cache: prefill, decode, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.cuda_compiler import prepare_device
from .._ffi.integers import to_int64, to_shape
from ..cache.paged_kv_cache import PagedKVCache
from ..cache.step_arguments import encode_masks, encode_pending
from ..recurrent.state import RecurrentState
from ..tree import TokenTree, as_trees
from .function_table import FunctionTable
from .replay import ReplayingCache

if TYPE_CHECKING:
    from ..cache.step_arguments import MaskLike


def _flatten(lists: Sequence[npt.ArrayLike], name: str) -> tuple[Any, Any]:
    """Ragged lists of integers as (lengths, values)."""
    parts = [to_int64(one, name).tolist() for one in lists]
    return tvm_ffi.Shape(tuple(map(len, parts))), tvm_ffi.Shape(tuple(chain.from_iterable(parts)))


class ModelRunner:
    """A model directory, loaded: MLC-LLM's layout, compiled by kvctl or by anybody.

    The model runs on a :class:`kvctl.PagedKVCache` of its own, whatever cache its library was
    compiled for. Sequences live in that cache: add them with ``runner.cache.add_sequence``, and
    take tokens back with its ``popn``, ``commit`` and ``rollback``.

    Every call either happens for all sequences that it names or raises and leaves the cache as it
    was, also when the model raises in the middle. One thread at a time.

    A library that says it attends to a sliding window (``sliding_window_size`` and
    ``attention_sink_size``, as MLC-LLM has them) gives every sequence that is added one: a token
    sees the sinks, just before the window, and so many tokens before itself as the two allow
    together. A sequence may then go on for ever. Layers with windows of their own need nothing.

    Examples
    --------
    >>> runner = kvctl.ModelRunner.load("SmolLM2-135M")
    >>> runner.cache.add_sequence(0)
    >>> logits = runner.prefill([0], [prompt])
    >>> tree = kvctl.TokenTree.chain([token, *drafts])
    >>> logits = runner.verify([0], [tree])
    >>> runner.cache.commit([0], [accepted_rows])
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        cache, state = ffi.runner.cache(handle), ffi.runner.state(handle)
        paged = None if cache is None else PagedKVCache.wrap(cache)
        self._cache: Any = paged
        if state is not None:
            self._cache = ReplayingCache(paged, RecurrentState.wrap(state), self._append)
        self._functions = FunctionTable._wrap(ffi.runner.library(handle))

    @classmethod
    def load(
        cls,
        model_dir: str | PathLike[str],
        *,
        device: str = "cpu",
        max_sequences: int = 4,
        max_total_tokens: int | None = None,
        prefill_chunk_size: int | None = None,
        page_size: int = 16,
        max_history: int = 16,
        max_state_bytes: int | None = None,
        keep_steps: bool = True,
        library: FunctionTable | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ModelRunner:
        """Load a model.

        Parameters
        ----------
        model_dir : path-like
            A directory with the compiled library (``lib.so``, or the only ``*.so``),
            ``tensor-cache.json``, ``params_shard_*.bin`` and ``mlc-chat-config.json``.
        device : str
            Where the model runs.
        max_sequences : int
            Sequences that may be in the cache at once.
        max_total_tokens : int, optional
            Tokens that the cache holds, all sequences together. By default one full context window
            for each sequence, but no more than 8192.
        prefill_chunk_size : int, optional
            New tokens of one forward; the library's own by default, which is also the limit.
        page_size : int
            Tokens in a page of the cache.
        max_history, max_state_bytes, keep_steps
            Of models with recurrent layers: how their states are kept; see
            :meth:`kvctl.RecurrentState.create`.
        library : FunctionTable, optional
            The model's library, if it is loaded already, on its device. It must have been loaded
            while kvctl's cache was installed.
        progress : callable, optional
            Called with the bytes of parameters read so far and their total.

        Raises
        ------
        FileNotFoundError
            If the directory or a file in it is missing.
        ValueError
            If a file is cut short, or the files do not belong together; nothing was loaded then. If
            a size is out of range.
        NotImplementedError
            If the model needs what the runner does not do, several devices say.
        RuntimeError
            If ``library`` was loaded before ``kvctl.install()`` and so is bound to TVM's cache.
        """
        if library is not None and not isinstance(library, FunctionTable):
            raise TypeError(f"library must be a kvctl.FunctionTable, got {type(library).__name__}")
        prepare_device(device)
        return cls(
            ffi.runner.load_model(
                fspath(model_dir),
                tvm_ffi.device(device),
                None if library is None else library._handle,
                _at_least_one("max_sequences", max_sequences),
                _at_least_one("max_total_tokens", max_total_tokens),
                _at_least_one("prefill_chunk_size", prefill_chunk_size),
                page_size,
                max_history,
                _at_least_one("max_state_bytes", max_state_bytes),
                keep_steps,
                progress,
            )
        )

    @property
    def cache(self) -> Any:
        """What the model's sequences live in.

        A :class:`kvctl.PagedKVCache`, or for models with recurrent layers a
        :class:`kvctl.engine.replay.ReplayingCache` of the same operations.
        """
        return self._cache

    def _append(self, seq_ids: list[int], tokens: list[list[int]]) -> None:
        """Run tokens again, whose logits nobody needs."""
        lengths, flat = _flatten(tokens, "tokens")
        ffi.runner.prefill(self._handle, to_shape(seq_ids, "seq_ids"), lengths, flat)

    def _ran(self, seq_ids: Sequence[int], lengths: Iterable[int], flat: Iterable[int]) -> None:
        """Remember what ran, where some of it may have to run again."""
        if isinstance(self._cache, ReplayingCache):
            rest = iter(flat)
            for seq_id, length in zip(seq_ids, lengths, strict=True):
                self._cache.record(seq_id, [next(rest) for _ in range(length)])

    @property
    def functions(self) -> FunctionTable:
        """The model library's functions."""
        return self._functions

    @property
    def params(self) -> Any:
        """The parameters, in the order in which the library's functions take them."""
        return ffi.runner.params(self._handle)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the library says about itself."""
        return self._functions.metadata

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``mlc-chat-config.json``."""
        config: dict[str, Any] = json.loads(str(ffi.runner.config(self._handle)))
        return config

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return int(ffi.runner.vocab_size(self._handle))

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most."""
        return int(ffi.runner.prefill_chunk_size(self._handle))

    def prefill(self, seq_ids: Sequence[int], tokens: Sequence[npt.ArrayLike]) -> Any:
        """Append prompts of any lengths, in chunks.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : sequence of array-like of int
            (B,) prompts, each (n_i,) with n_i at least 1.

        Returns
        -------
        tensor
            (B, vocab_size) float32, what follows the last token of each prompt.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a prompt is empty, a token is outside the vocabulary, or a sequence has pending
            nodes.
        kvctl.OutOfPagesError
            If the prompts do not fit into the cache's free pages.
        """
        lengths, flat = _flatten(tokens, "tokens")
        logits = ffi.runner.prefill(self._handle, to_shape(seq_ids, "seq_ids"), lengths, flat)
        self._ran(seq_ids, lengths, flat)
        return logits

    def decode(self, seq_ids: Sequence[int], tokens: npt.ArrayLike) -> Any:
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
        logits = ffi.runner.decode(
            self._handle, to_shape(seq_ids, "seq_ids"), tvm_ffi.Shape(tuple(flat))
        )
        self._ran(seq_ids, [1] * len(flat), flat)
        return logits

    def verify(self, seq_ids: Sequence[int], trees: TokenTree | Sequence[TokenTree]) -> Any:
        """Forward one tree of drafts per sequence and leave its rows pending.

        Commit what was accepted with ``runner.cache.commit(seq_ids, kept)``, or drop everything
        with ``runner.cache.abort(seq_ids)``.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        trees : TokenTree or sequence of TokenTree
            (B,) trees; their node 0 is the last emitted token, which the cache does not hold yet.

        Returns
        -------
        tensor
            (rows of all trees, vocab_size) float32, tree after tree. Row i of a tree says what
            follows the nodes in row i.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a tree is larger than the prefill chunk, a token is outside the vocabulary, or a row
            belongs to no node (:meth:`forward` takes such rows).
        kvctl.OutOfPagesError
            If the trees do not fit into the cache's free pages.
        NotImplementedError
            If the library does not export ``batch_verify``.
        """
        trees = as_trees(trees)
        sizes, tokens = _flatten([tree.tokens for tree in trees], "tokens")
        _, parents = _flatten([tree.parents for tree in trees], "parents")
        _, rows = _flatten([tree.rows for tree in trees], "rows")
        logits = ffi.runner.verify(
            self._handle, to_shape(seq_ids, "seq_ids"), sizes, tokens, parents, rows
        )
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
    ) -> Any:
        """Forward any new tokens under any masks.

        Parameters
        ----------
        seq_ids : sequence of int
            (B,) sequences of the cache, each at most once.
        tokens : sequence of array-like of int
            (B,) new tokens of each, each (n_i,) with n_i at least 1.
        mask : Mask or sequence of Mask, optional
            As for ``PagedKVCache.begin_forward``: one mask for a batch of one, or one per sequence.
        positions : sequence of array-like of int, optional
            (B,) rotary positions of the new tokens, each (n_i,); by default they follow the mask.
        pending : bool, optional
            Keep the new tokens pending although the mask is no tree.

        Returns
        -------
        tensor
            (all new tokens, vocab_size) float32, sequence after sequence.

        Raises
        ------
        KeyError, ValueError, kvctl.OutOfPagesError, NotImplementedError
            As :meth:`verify`, and what ``begin_forward`` raises.
        """
        lengths, flat = _flatten(tokens, "tokens")
        logits = ffi.runner.forward(
            self._handle,
            to_shape(seq_ids, "seq_ids"),
            lengths,
            flat,
            encode_masks(mask),
            None if positions is None else _flatten(positions, "positions")[1],
            encode_pending(pending),
        )
        self._ran(seq_ids, lengths, flat)
        return logits

    def __repr__(self) -> str:
        return (
            f"ModelRunner({self._functions.path!r}, vocab_size={self.vocab_size}, "
            f"cache={self._cache!r})"
        )


def _at_least_one(name: str, value: int | None) -> int:
    """0 means "the default" to the library, and must not mean it to users."""
    if value is None:
        return 0
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
