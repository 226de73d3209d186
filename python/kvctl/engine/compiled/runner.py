"""A compiled language model on a kvctl cache: prefill, decode, verify."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from ..._ffi import functions as ffi
from ..._ffi.convert import to_path, to_tensor
from ..._ffi.cuda_compiler import prepare_device
from ...cache.paged_kv_cache import PagedKVCache
from ...recurrent.state import RecurrentState
from ...text import ModelText
from ...text.turn_end import named_stop_tokens
from .exits.partial import PartialRows
from .forwards import ModelForwards
from .function_table import FunctionTable
from .replay import ReplayingCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from ..runner_cache import RunnerCache


_KV_DTYPES = ("float32", "float16", "bfloat16", "int8", "float8_e4m3fn")


class ModelRunner(ModelForwards):
    """A loaded model: a directory in MLC-LLM's layout, compiled by kvctl or by MLC-LLM.

    The model runs on a :class:`kvctl.PagedKVCache` of its own, whatever cache its library was
    compiled for. That cache holds the sequences: add them with ``runner.cache.add_sequence``, and
    take tokens back with its ``popn``, ``commit`` and ``rollback``.

    Every call either happens for all sequences that it names, or raises and leaves the cache as it
    was, also when the model raises in the middle. One thread may call it at a time.

    If the library's metadata names a sliding window (``sliding_window_size`` and
    ``attention_sink_size``, MLC-LLM's fields), every added sequence gets that window: a token sees
    the sinks, placed just before the window, and the tokens before itself, both together at most
    the window's size. Such a sequence has no maximal length. Windows of single layers are part of
    the model.

    Examples
    --------
    >>> runner = kvctl.ModelRunner.load("SmolLM2-135M")
    >>> runner.cache.add_sequence(0)
    >>> logits = runner.prefill([0], [prompt])
    >>> tree = kvctl.TokenTree.chain([token, *drafts])
    >>> logits = runner.verify([0], [tree])
    >>> runner.cache.commit([0], [accepted_rows])
    """

    def __init__(
        self, handle: ffi.ModelRunnerHandle, directory: str | PathLike[str] | None = None
    ) -> None:
        self._handle = handle
        self._directory = directory
        cache, state = ffi.runner.get_cache(handle), ffi.runner.get_state(handle)
        paged = None if cache is None else PagedKVCache.wrap(cache)
        if state is not None:
            self._cache = ReplayingCache(paged, RecurrentState.wrap(state), self._run_again)
        elif paged is not None:
            self._cache = paged
        self._functions = FunctionTable._wrap(ffi.runner.get_library(handle))
        self._partial = PartialRows()
        self._num_layers = self.metadata.get("kv_cache", {}).get("num_hidden_layers")

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
        kv_dtype: str | None = None,
        kv_scales: npt.ArrayLike | None = None,
        max_history: int = 16,
        max_state_bytes: int | None = None,
        keep_steps: bool = True,
        shard: int | None = None,
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
        kv_dtype : {"float32", "float16", "bfloat16", "int8", "float8_e4m3fn"}, optional
            The type of K and V in the pages; the library's own by default. "int8", for the CPU,
            takes a quarter of float32's memory, "float8_e4m3fn", for CUDA, half of float16's; see
            :meth:`kvctl.PagedKVCache.create`.
        kv_scales : array_like, (num_layers, 2, num_kv_heads) float32, optional
            What the elements of "float8_e4m3fn" pages are multiplied by, for each layer K's, then
            V's; by default 1.
        max_history, max_state_bytes, keep_steps
            Of models with recurrent layers: how their states are kept; see
            :meth:`kvctl.RecurrentState.create`.
        shard : int, optional
            Which worker this is of those that the model was compiled for, counted from 0. Every
            worker makes the same calls, in a process of its own that is part of a session of TVM's
            Disco: ``kvctl.distributed.ModelRunner`` does it. Logits are those of all workers on
            worker 0, and the worker's own columns on others.
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
            If a file is truncated, if the files do not belong together, if a size is out of range,
            or if ``kv_scales`` have another shape, are not above 0, or are not for such pages.
            Nothing is loaded then.
        TypeError
            If there is no such type of K and V.
        NotImplementedError
            If the model needs something that the runner cannot do, such as several devices.
        RuntimeError
            If ``library`` was loaded before ``kvctl.install()`` and so is bound to TVM's cache.
        """
        if library is not None and not isinstance(library, FunctionTable):
            raise TypeError(f"library must be a kvctl.FunctionTable, got {type(library).__name__}")
        if kv_dtype is not None and kv_dtype not in _KV_DTYPES:
            raise TypeError(
                f"kv_dtype must be {', '.join(_KV_DTYPES[:-1])} or {_KV_DTYPES[-1]}, got {kv_dtype}"
            )
        prepare_device(device)
        return cls(
            ffi.runner.load_model(
                to_path(model_dir),
                tvm_ffi.device(device),
                None if library is None else library._handle,
                at_least_one("max_sequences", max_sequences),
                at_least_one("max_total_tokens", max_total_tokens),
                at_least_one("prefill_chunk_size", prefill_chunk_size),
                page_size,
                kv_dtype or "",
                None if kv_scales is None else to_tensor(np.array(kv_scales, np.float32)),
                max_history,
                at_least_one("max_state_bytes", max_state_bytes),
                keep_steps,
                -1 if shard is None else shard,
                progress,
            ),
            model_dir,
        )

    @property
    def cache(self) -> RunnerCache:
        """The cache that holds the model's sequences.

        It is a :class:`kvctl.PagedKVCache`, or for models with recurrent layers a
        :class:`kvctl.engine.compiled.replay.ReplayingCache` with the same operations.
        """
        return self._cache

    @property
    def functions(self) -> FunctionTable:
        """The model library's functions."""
        return self._functions

    @property
    def params(self) -> Sequence[tvm_ffi.Tensor]:
        """The parameters, in the order in which the library's functions take them."""
        return ffi.runner.get_params(self._handle)

    @property
    def metadata(self) -> dict[str, Any]:
        """The library's metadata."""
        return self._functions.metadata

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``mlc-chat-config.json``."""
        config: dict[str, Any] = json.loads(str(ffi.runner.get_config(self._handle)))
        return config

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return ffi.runner.get_vocab_size(self._handle)

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most."""
        return ffi.runner.get_prefill_chunk_size(self._handle)

    @property
    def context_window_size(self) -> int | None:
        """Tokens that a sequence may have; None where the library sets no limit."""
        return self._size("context_window_size")

    @property
    def sliding_window_size(self) -> int | None:
        """The window of every sequence; None without one."""
        return self._size("sliding_window_size")

    @property
    def abilities(self) -> frozenset[str]:
        """Which optional abilities of :class:`kvctl.engine.Runner` the library has."""
        hidden = ["hidden"] if ffi.runner.gives_hidden(self._handle) else []
        exits = self.metadata.get("kvctl", {}).get("exit_layers")
        return frozenset(["embed", *hidden, *(["layers"] if exits else [])])

    @cached_property
    def identity(self) -> str:
        """A name for this model on its device, under which what its rounds cost is remembered."""
        path = Path(self._functions.path).resolve()
        status = path.stat()
        device = self.params[0].device if len(self.params) else "cpu"
        # What reading K and V costs, and what a rollback of recurrent layers does.
        paged, state = ffi.runner.get_cache(self._handle), ffi.runner.get_state(self._handle)
        kv_dtype = None if paged is None else PagedKVCache.wrap(paged).dtype
        steps = "" if state is None else f" steps={RecurrentState.wrap(state).keep_steps}"
        return f"{path} {status.st_size} {status.st_mtime_ns} {device} {kv_dtype}{steps}"

    @cached_property
    def weights_digest(self) -> str | None:
        """Tells these weights from others, wherever their files lie; None where there are none."""
        if self._directory is None:
            return None
        index = Path(self._directory) / "tensor-cache.json"  # it has a checksum of each file
        return hashlib.sha256(index.read_bytes()).hexdigest()

    @cached_property
    def text(self) -> ModelText:
        """The tokenizer, the chat template and the stops of the model's directory.

        Raises
        ------
        FileNotFoundError
            If the directory has no tokenizer.
        ValueError
            If a file is damaged.
        """
        if self._directory is None:
            raise FileNotFoundError("the model was not loaded from a directory with a tokenizer")
        return ModelText.load(Path(self._directory))

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end the model's turn.

        Without a tokenizer they are those that ``mlc-chat-config.json`` names by id.
        """
        try:
            return self.text.stop_tokens
        except FileNotFoundError:
            return named_stop_tokens(self.config)

    def _size(self, field: str) -> int | None:
        """Return a size of the metadata, where -1 and absence mean that there is none."""
        size = int(self.metadata.get(field) or -1)
        return size if size > 0 else None

    def __repr__(self) -> str:
        return (
            f"ModelRunner({self._functions.path!r}, vocab_size={self.vocab_size}, "
            f"cache={self._cache!r})"
        )


def at_least_one(name: str, value: int | None) -> int:
    """Return 0, which is the library's default, for None alone: users must not give 0."""
    if value is None:
        return 0
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
