"""The paged KV cache: fork, append, verify, commit, roll back.

Every operation either happens or raises and leaves the cache as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from .convert import encode_masks, to_numpy, to_shape, to_tensor
from .rope import Rope
from .sequences import SequenceStore

if TYPE_CHECKING:
    from .convert import MaskLike

_ffi = tvm_ffi.get_global_func

_create = _ffi("kvctl.cache.create")
_begin_forward = _ffi("kvctl.cache.begin_forward")
_abort_forward = _ffi("kvctl.cache.abort_forward")
_drop_pending = _ffi("kvctl.cache.drop_pending")
_commit = _ffi("kvctl.cache.commit")
_popn = _ffi("kvctl.cache.popn")
_set_sliding_window = _ffi("kvctl.cache.set_sliding_window")
_sequence_ids = _ffi("kvctl.cache.sequence_ids")
_evict = _ffi("kvctl.cache.evict")
_save_sequence = _ffi("kvctl.cache.save_sequence")
_load_sequence = _ffi("kvctl.cache.load_sequence")
_kv_layout = _ffi("kvctl.cache.kv_layout")
_set_page_selector = _ffi("kvctl.cache.set_page_selector")
_set_observer = _ffi("kvctl.cache.set_observer")
_attention = _ffi("kvctl.cache.attention")
_get_kv = _ffi("kvctl.cache.get_kv")
_sizes = _ffi("kvctl.cache.sizes")
_dtype = _ffi("kvctl.cache.dtype")
_debug_poison = _ffi("kvctl.cache.debug_poison")
_fork_sequence = _ffi("vm.builtin.kv_state_fork_sequence")
_empty = _ffi("vm.builtin.attention_kv_cache_empty")
_num_available_pages = _ffi("vm.builtin.attention_kv_cache_get_num_available_pages")
_total_sequence_length = _ffi("vm.builtin.attention_kv_cache_get_total_sequence_length")
_sequence_length = _ffi("vm.builtin.attention_kv_cache_get_sequence_length")
_query_positions = _ffi("vm.builtin.attention_kv_cache_get_query_positions")


class PagedKVCache(SequenceStore, area="cache"):
    """A paged KV cache over which any compiled model, or attention called from Python, runs.

    Made by :meth:`create`, or around the cache that a model library created (:meth:`wrap`). The
    object itself may be handed to every ``vm.builtin.kv_state_*`` and
    ``vm.builtin.attention_kv_cache_*`` function and to a model's functions.

    A sequence has *committed* tokens and, after a step under a token tree, *pending* nodes: drafted
    tokens that nobody has accepted yet. :meth:`commit` keeps some of them and drops the others.
    """

    def __init__(self, handle: Any) -> None:
        super().__init__(handle)
        sizes = _sizes(handle)
        self.num_layers: int = sizes[0]
        self.num_qo_heads: int = sizes[1]
        self.num_kv_heads: int = sizes[2]
        self.head_dim: int = sizes[3]
        self.num_pages: int = sizes[4]
        self.page_size: int = sizes[5]
        self.max_sequences: int = sizes[6]
        self.prefill_chunk_size: int = sizes[7]
        self.dtype: str = str(_dtype(handle))

    @classmethod
    def create(
        cls,
        *,
        num_layers: int,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_total_tokens: int,
        page_size: int = 16,
        max_sequences: int = 32,
        prefill_chunk_size: int = 512,
        dtype: str = "float32",
        device: str = "cpu",
        rope: Rope | None = None,
        layer_windows: Sequence[int] = (),
    ) -> PagedKVCache:
        """Create a cache.

        Parameters
        ----------
        num_layers, num_qo_heads, num_kv_heads, head_dim : int
            The model's shape. Query heads are a multiple of KV heads; ``head_dim`` is a multiple
            of 8, at most 256.
        max_total_tokens : int
            Tokens of all sequences together; rounded up to whole pages.
        page_size : int
            Tokens in a page.
        max_sequences : int
            Sequences that may exist at once.
        prefill_chunk_size : int
            New tokens in one step, over the whole batch.
        dtype : {"float32", "float16", "bfloat16"}
            The pages' element type. Attention accumulates in float32.
        device : str
            "cpu", "cuda" or "cuda:1". On CUDA ``dtype`` is "float16" or "bfloat16" and ``head_dim``
            64, 128 or 256.
        rope : Rope, optional
            Rotation that the cache applies; without it q and k are taken as they come.
        layer_windows : sequence of int, optional
            Per layer the size of its own sliding window, 0 for none.

        Raises
        ------
        ValueError
            If a size makes no sense.
        NotImplementedError
            If there are no kernels for the device.
        """
        return cls(
            _create(
                num_layers,
                num_qo_heads,
                num_kv_heads,
                head_dim,
                max_total_tokens,
                page_size,
                max_sequences,
                prefill_chunk_size,
                dtype,
                tvm_ffi.device(device),
                0 if rope is None else 1 + int(rope.inline),
                1.0 if rope is None else rope.scale,
                1.0 if rope is None else rope.theta,
                to_shape(layer_windows),
            )
        )

    def __repr__(self) -> str:
        return (
            f"PagedKVCache(num_layers={self.num_layers}, num_qo_heads={self.num_qo_heads}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, dtype={self.dtype!r}, "
            f"free pages={self.num_available_pages} of {self.num_pages} x {self.page_size} tokens)"
        )

    # Sequences.

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Make ``child`` a copy of the first ``position`` tokens of ``parent``.

        Pages are shared until somebody writes into one.

        Parameters
        ----------
        parent, child : int
            An existing sequence and a new id.
        position : int
            Tokens to take over; -1 takes all, pending nodes included.

        Raises
        ------
        KeyError
            If there is no parent.
        ValueError
            If the child exists, or the parent is shorter than ``position``.
        """
        _fork_sequence(self._handle, parent, child, position)

    @property
    def empty(self) -> bool:
        """Whether the cache has no sequences."""
        return bool(_empty(self._handle))

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, its pending nodes and those of a step in flight included."""
        return int(_sequence_length(self._handle, seq_id))

    @property
    def sequence_ids(self) -> list[int]:
        """The ids of all sequences, ascending."""
        return [int(seq_id) for seq_id in _sequence_ids(self._handle)]

    @property
    def total_sequence_length(self) -> int:
        """Tokens of all sequences."""
        return int(_total_sequence_length(self._handle))

    @property
    def num_available_pages(self) -> int:
        """Free pages."""
        return int(_num_available_pages(self._handle))

    def enable_sliding_window(
        self,
        seq_id: int,
        size: int,
        *,
        sinks: int = 0,
        horizon: int = 64,
        renumber_sinks: bool = False,
    ) -> None:
        """Give a sequence a sliding window, or another one.

        Pages that have passed the window and its horizon are let go.

        Parameters
        ----------
        seq_id : int
            The sequence.
        size : int
            A token sees the last ``size`` positions, its own included...
        sinks : int
            ... and the first ``sinks`` (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453).
        horizon : int
            How many tokens the sequence can be popped or rolled back.
        renumber_sinks : bool
            By default a sink stays where it is, ever further away. With this it moves along just
            before the window, as in StreamingLLM: a token at position p looks at the sinks as if it
            were at ``min(p, size + sinks - 1)``. Needs a cache that applies RoPE. Windows that are
            set through TVM's function do so.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a size makes no sense, tokens that the window shows have been let go, or sinks are to
            be renumbered in a cache without RoPE.
        """
        _set_sliding_window(self._handle, seq_id, size, sinks, horizon, renumber_sinks)

    # A step.

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
            What the new tokens may look at: one mask for a batch of one, or one per sequence, None
            being causal. A :class:`kvctl.TokenTree` stands for the mask of its rows. The new tokens
            of a tree are pending; its parents index the whole pending region.
        positions : sequence of int, optional
            Rotary positions of all new tokens, sequence after sequence. By default they follow the
            mask: depth in a tree.
        pending : bool, optional
            Keep the new tokens pending although the mask is no tree.

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
        _begin_forward(
            self._handle,
            to_shape(seq_ids),
            to_shape(append_lengths),
            encode_masks(mask),
            None if positions is None else to_shape(positions),
            -1 if pending is None else int(pending),
        )

    def attention(
        self,
        layer: int,
        qkv: Any,
        out: Any = None,
        *,
        sm_scale: float | None = None,
        soft_cap: float = 0.0,
        alibi_slopes: Any = None,
        sinks: Any = None,
        lse: Any = None,
        mass: Any = None,
    ) -> Any:
        """Append the new tokens' K and V to a layer and attend under the step's mask.

        Parameters
        ----------
        layer : int
            The layer.
        qkv : tensor, (total_new, num_qo_heads + 2 * num_kv_heads, head_dim)
            Q, K and V of the new tokens, float32, float16 or bfloat16.
        out : tensor, (total_new, num_qo_heads, head_dim), optional
            Receives the result.
        sm_scale : float, optional
            Scores are multiplied by it; ``head_dim ** -0.5`` by default.
        soft_cap : float
            If positive, scores become ``soft_cap * tanh(scores / soft_cap)``.
        alibi_slopes : tensor, (num_qo_heads,) float32, optional
            Adds ``slope * (position of column - position of row)`` to the scores.
        sinks : tensor, (num_qo_heads,) float32, optional
            One more logit in each head's softmax, without a value.
        lse : tensor, (total_new, num_qo_heads) float32, optional
            Receives the natural logarithm of the sum of the scores' exponentials.
        mass : tensor, (columns, num_kv_heads or num_qo_heads) float32, optional
            What the tokens give to each column, their softmax weights summed over tokens (and over
            the query heads of a KV head), is added to it. Columns are those of all sequences of the
            step, new tokens included, one sequence after another.

        Returns
        -------
        tensor, (total_new, num_qo_heads, head_dim)
            ``out``, or a new tensor of qkv's type. A token that may look at nothing gets zeros.

        Raises
        ------
        RuntimeError
            If no step is in flight.
        ValueError
            If a shape does not fit.
        """
        return _attention(
            self._handle,
            layer,
            to_tensor(qkv),
            None if out is None else to_tensor(out),
            self.head_dim**-0.5 if sm_scale is None else sm_scale,
            soft_cap,
            *(None if x is None else to_tensor(x) for x in (alibi_slopes, sinks, lse, mass)),
        )

    def select_pages(self, select: Callable[[int, Any], Sequence[Any]] | None) -> None:
        """Let a function of the queries choose what attention looks at (Quest, arXiv:2406.10774).

        Parameters
        ----------
        select : callable or None
            ``select(layer, q)`` is called at each attention call, of a compiled model too, with the
            rotated queries ``(total_new, num_qo_heads, head_dim)`` of the step, and returns for
            each sequence of the step the indices of its pages to look at, or None for all of them,
            or a list of one of either for each KV head; page i holds columns
            ``[i * page_size, (i + 1) * page_size)``. Pages with new tokens are looked at in any
            case, and the step's mask applies as well. It must not use the cache. What it raises,
            the attention call raises. None: all pages again.
        """
        if select is None:
            _set_page_selector(self._handle, None)
            return
        choose = select

        def answer(layer: int, q: Any) -> list[Any]:
            return [_pages(pages) for pages in choose(layer, q)]

        _set_page_selector(self._handle, tvm_ffi.convert(answer))

    def observe_attention(
        self,
        observer: Callable[[int, list[int], list[Any]], None] | None,
        *,
        heads: str = "kv",
        last: int = 0,
    ) -> None:
        """Watch what attention gives to each token, in compiled models too.

        The sums are what tokens are ranked by that may be dropped (H2O, arXiv:2306.14048; SnapKV,
        arXiv:2404.14469); :class:`kvctl.AttentionMass` adds them up. Scores are computed a second
        time for them.

        Parameters
        ----------
        observer : callable or None
            ``observer(layer, seq_ids, sums)`` is called after each attention call of the step with
            one float32 tensor ``(columns, heads)`` for each sequence: the softmax weights of each
            column, summed over the new tokens. It must not use the cache. What it raises, the
            attention call raises. None: nobody watches.
        heads : {"kv", "qo"}
            Sums for each KV head, over its query heads too, or for each query head.
        last : int
            Sum over the last so many new tokens of each sequence only; 0: over all.

        Raises
        ------
        ValueError
            If ``heads`` is neither, or ``last`` negative.
        """
        if heads not in ("kv", "qo"):
            raise ValueError(f"heads must be 'kv' or 'qo', got {heads!r}")
        watch = observer
        tell = (
            None
            if watch is None
            else tvm_ffi.convert(lambda layer, ids, sums: watch(layer, list(ids), list(sums)))
        )
        _set_observer(self._handle, tell, heads == "qo", last)

    def query_positions(self) -> Any:
        """Rotary positions of the step's new tokens, int32 (total_new,)."""
        return _query_positions(self._handle)

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> None:
        """Commit the kept pending nodes of each sequence and drop its others.

        Parameters
        ----------
        seq_ids : sequence of int
            Any sequences, in any order.
        kept : sequence of sequences of int
            Indices into each pending region, ascending, whose positions continue the sequence:
            a path from the committed context, or nothing.

        Raises
        ------
        KeyError, IndexError, ValueError
            If a sequence or a node does not exist, or nodes are no continuation.
        kvctl.OutOfPagesError
            If pages shared with a fork would have to be copied and none is free.
        """
        _commit(self._handle, to_shape(seq_ids), [to_shape(nodes) for nodes in kept])

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Take back what is not committed.

        During a step: the whole step, as if :meth:`begin_forward` had not been called. Otherwise:
        the pending nodes of the given sequences, of all by default.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        if self.in_forward:
            _abort_forward(self._handle)
        else:
            _drop_pending(self._handle, None if seq_ids is None else to_shape(seq_ids))

    @contextmanager
    def forward(
        self,
        seq_ids: Sequence[int],
        append_lengths: Sequence[int],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Any = None,
        pending: bool | None = None,
    ) -> Iterator[None]:
        """Run a step as a context: ended when the block ends, aborted when it raises."""
        self.begin_forward(seq_ids, append_lengths, mask=mask, positions=positions, pending=pending)
        try:
            yield
        except BaseException:
            self.abort()
            raise
        self.end_forward()

    # Rolling back.

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last ``n`` tokens: pending nodes, the latest first, then committed ones.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If it has fewer tokens.
        """
        _popn(self._handle, seq_id, n)

    # Moving.

    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        """Keep some committed tokens of a sequence and drop the others, in every layer.

        By default the kept tokens keep their positions, and the next token gets the position that
        it would have had: windows and ALiBi go on measuring original distances. The sequence has
        as many tokens as were kept; token i is the i-th kept one, for :meth:`popn`,
        :meth:`get_kv`, masks and further evictions alike. Pages shared with a fork or a checkpoint
        are left as they are: :meth:`rollback` to a checkpoint made before undoes the eviction.

        Parameters
        ----------
        seq_id : int
            The sequence, which must have no pending nodes.
        keep : sequence of int, or array
            The tokens that stay: ascending indices, or one boolean for each committed token. What a
            sliding window has let go cannot be kept.
        rerotate : bool
            Number the kept tokens 0, 1, 2, ... and turn their keys there, as if they alone had been
            cached; the next token follows on. (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453,
            section 3.2, rolls its cache so.) Keys of 16 bits are rounded once
            more, except with inline RoPE.

        Raises
        ------
        KeyError, IndexError
            If there is no such sequence or token.
        ValueError
            If the sequence has pending nodes (commit or abort them first), or ``keep`` does not
            ascend, is a mask of another length, or names tokens that a window has let go.
        NotImplementedError
            If keys are to be turned that the cache did not rotate, or whose frequencies it does not
            know because a model library's own function rotates them.
        kvctl.OutOfPagesError
            If shared pages would have to be copied and none is free. A sequence that shares nothing
            needs none.
        """
        length = self.sequence_length(seq_id) - self.pending_length(seq_id)
        _evict(self._handle, seq_id, to_shape(_kept_indices(keep, length)), rerotate)

    def save_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> None:
        """Write the committed tokens of a sequence to a file, for :meth:`load_sequence`.

        The file is a safetensors file with the tensors ``k`` and ``v``, each ``(num_layers, tokens,
        num_kv_heads, head_dim)``, and ``positions`` where they are not 0, 1, 2, ...; see
        :mod:`kvctl.sequence_file`. Positions and the sliding window go with it, checkpoints do not.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If it has pending nodes: commit or abort them first.
        OSError
            If the file cannot be written; one of that name is then left as it was.
        """
        from .sequence_file import SequenceFile

        numbers, *arrays = _save_sequence(self._handle, seq_id)
        positions, k, v = (to_numpy(array) for array in arrays)
        numbers = tuple(int(number) for number in numbers)
        SequenceFile(self._kv_layout(), numbers, positions, k, v).write(path)

    def load_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> None:
        """Add a sequence that :meth:`save_sequence` wrote, of this cache or of another one.

        It goes on as the saved one would have: attention is the same bit for bit (with inline RoPE
        where the tokens came in the cache's own type). The caches must agree in layers, KV heads,
        head dimension, type and rotation, not in page size or capacity.

        Parameters
        ----------
        seq_id : int
            A new id.
        path : path
            The file.

        Raises
        ------
        ValueError
            If the id is taken, the file is no saved sequence or damaged, or it comes from a cache
            with another layout: the message says what differs.
        kvctl.OutOfPagesError
            If there are too few free pages.
        OSError
            If the file cannot be read.
        """
        from .sequence_file import read_sequence_file

        file = read_sequence_file(path, self._kv_layout(), self.num_pages * self.page_size)
        _load_sequence(
            self._handle,
            seq_id,
            to_shape(file.numbers),
            None if file.positions is None else to_tensor(file.positions),
            to_tensor(file.k),
            to_tensor(file.v),
        )

    def _kv_layout(self) -> dict[str, Any]:
        layout: dict[str, Any] = json.loads(str(_kv_layout(self._handle)))
        return layout

    # Looking inside.

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> tuple[Any, Any]:
        """K and V of tokens ``[begin, end)`` as the cache holds them.

        Returns
        -------
        tuple of two tensors, (num_layers, end - begin, num_kv_heads, head_dim)

        Raises
        ------
        IndexError
            If the range is not in the sequence.
        """
        if end is not None and end < 0:
            raise IndexError(f"end must not be negative, got {end}")
        k, v = _get_kv(self._handle, seq_id, begin, -1 if end is None else end)
        return k, v

    def debug_poison(self) -> None:
        """Fill every slot that no sequence and no checkpoint uses with NaN."""
        _debug_poison(self._handle)


def _kept_indices(keep: Any, length: int) -> Iterable[int]:
    """Return indices for indices or a boolean mask over ``length`` tokens."""
    array = np.from_dlpack(keep) if hasattr(keep, "__dlpack__") else np.asarray(keep)
    if array.ndim != 1:
        raise ValueError(f"keep must have one dimension, got {array.ndim}")
    if array.dtype == bool:
        if len(array) != length:
            raise ValueError(
                f"keep is a mask of {len(array)} tokens; the sequence has {length} committed ones"
            )
        array = np.flatnonzero(array)
    elif array.size and array.dtype.kind not in "iu":
        raise ValueError(f"keep must hold indices or booleans, got {array.dtype}")
    kept: list[int] = array.tolist()
    return kept


def _pages(answer: Any) -> Any:
    """Return a page selector's answer for one sequence as FFI functions take it."""
    if answer is None:
        return None
    pages = list(answer)
    if pages and any(one is None or isinstance(one, Iterable) for one in pages):
        return [_pages(one) for one in pages]
    return to_shape(pages)
