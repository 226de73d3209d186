"""The paged KV cache: fork, append, verify, commit, roll back.

Every operation either happens or raises and leaves the cache as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.convert import to_numpy, to_tensor
from .._ffi.integers import to_shape
from .attention import CacheAttention
from .contents import CacheContents
from .pages import CachePages
from .rope import Rope
from .step import CacheStep


class PagedKVCache(CacheStep, CacheAttention, CacheContents, CachePages):
    """A paged KV cache for any compiled model, and for attention called from Python.

    :meth:`create` makes one; :meth:`wrap` makes one around the cache that a model library created.
    The object itself may be passed to every ``vm.builtin.kv_state_*`` and
    ``vm.builtin.attention_kv_cache_*`` function and to a model's functions.

    A sequence has *committed* tokens and, after a step under a token tree, *pending* nodes: drafted
    tokens that are not accepted yet. :meth:`commit` keeps some of them and drops the others.
    """

    _functions = ffi.cache

    def __init__(self, handle: ffi.PagedKVCacheHandle) -> None:
        super().__init__(handle)
        config = ffi.cache.get_config(handle)
        self.num_layers: int = config.num_layers
        self.num_qo_heads: int = config.num_qo_heads
        self.num_kv_heads: int = config.num_kv_heads
        self.head_dim: int = config.head_dim
        self.num_pages: int = config.max_total_tokens // config.page_size
        self.page_size: int = config.page_size
        self.max_sequences: int = config.max_sequences
        self.prefill_chunk_size: int = config.prefill_chunk_size
        self.dtype: str = str(config.dtype)
        self.device: tvm_ffi.Device = config.device
        scales = config.kv_scales
        #: (num_layers, 2, num_kv_heads) float32: what float8_e4m3fn elements are multiplied by;
        #: None for other pages.
        self.kv_scales: npt.NDArray[np.float32] | None = (
            None if scales is None else np.array(to_numpy(scales))
        )

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
        kv_scales: npt.ArrayLike | None = None,
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
        dtype : {"float32", "float16", "bfloat16", "int8", "float8_e4m3fn"}
            The pages' element type. Attention accumulates in float32. "int8" takes about 3.8 times
            less memory than "float32": the K and the V of each token and head are integers with a
            float32 scale, the largest magnitude / 127. K or V with an infinite or NaN element is
            NaN as a whole then. "float8_e4m3fn", on CUDA, takes half of "float16": elements have a
            sign, four bits of exponent and three of mantissa, and are multiplied by ``kv_scales``.
            The largest is 448: a larger element of K or V becomes 448 times its scale and counts in
            :attr:`num_saturated`; an infinite one becomes NaN. ``head_dim`` is a multiple of 16,
            and attention takes q as float16.
        device : str
            "cpu", "cuda" or "cuda:1". On CUDA attention is fast for "float16" and "bfloat16" with a
            ``head_dim`` of 64, 80, 96, 112, 128 or 256, and for "float8_e4m3fn" with one of 64 or
            128; others get a plain kernel.
        rope : Rope, optional
            Rotation that the cache applies; without it the cache does not rotate q and k.
        layer_windows : sequence of int, optional
            Per layer the size of its own sliding window, 0 for none.
        kv_scales : array_like, (num_layers, 2, num_kv_heads) float32, optional
            What the elements of "float8_e4m3fn" pages are multiplied by: for each layer and KV head
            K's scale, then V's, above 0. Good ones are the largest magnitude that a head's K or V
            has in some texts, divided by 448. By default 1.

        Raises
        ------
        ValueError
            If a size is out of range; if scales are not above 0, or not for such pages.
        TypeError
            If pages cannot have that type.
        NotImplementedError
            If there are no kernels for the device; for int8 pages on CUDA, or with inline RoPE; for
            float8_e4m3fn pages on the CPU.
        """
        if not isinstance(dtype, str):
            raise TypeError(f'dtype must be a name such as "float32", got {dtype!r}')
        if rope is not None and not isinstance(rope, Rope):
            raise TypeError(f"rope must be a kvctl.Rope or None, got {type(rope).__name__}")
        if dtype == "float8_e4m3fn" and kv_scales is None:
            kv_scales = np.ones((num_layers, 2, num_kv_heads), np.float32)
        config = ffi.CacheConfig(
            num_layers=num_layers,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_total_tokens=max_total_tokens,
            page_size=page_size,
            max_sequences=max_sequences,
            prefill_chunk_size=prefill_chunk_size,
            dtype=dtype,
            device=tvm_ffi.device(device),
            rope_mode=0 if rope is None else 1 + int(rope.inline),
            rope_scale=1.0 if rope is None else rope.scale,
            rope_theta=1.0 if rope is None else rope.theta,
            layer_windows=to_shape(layer_windows, "layer_windows"),
            kv_scales=None if kv_scales is None else to_tensor(np.array(kv_scales, np.float32)),
        )
        return cls(ffi.cache.create(config))

    def __repr__(self) -> str:
        return (
            f"PagedKVCache(num_layers={self.num_layers}, num_qo_heads={self.num_qo_heads}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, dtype={self.dtype!r}, "
            f"free pages={self.num_available_pages} of {self.num_pages} x {self.page_size} tokens)"
        )

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Make ``child`` a copy of the first ``position`` tokens of ``parent``.

        The two share pages. A page is copied when one of them writes to it.

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
        ffi.vm_builtin.kv_state_fork_sequence(self._handle, parent, child, position)

    @property
    def empty(self) -> bool:
        """Whether the cache has no sequences."""
        return ffi.vm_builtin.attention_kv_cache_empty(self._handle)

    @property
    def sequence_ids(self) -> list[int]:
        """The ids of all sequences, ascending."""
        return [int(seq_id) for seq_id in ffi.cache.get_sequence_ids(self._handle)]

    @property
    def total_sequence_length(self) -> int:
        """Tokens of all sequences."""
        return ffi.vm_builtin.attention_kv_cache_get_total_sequence_length(self._handle)

    @property
    def num_available_pages(self) -> int:
        """Free pages."""
        return ffi.vm_builtin.attention_kv_cache_get_num_available_pages(self._handle)

    @property
    def num_saturated(self) -> int:
        """Elements of K and V that were too large for float8_e4m3fn pages, since creation.

        Each became 448 times its scale. Where there are many, ``kv_scales`` are too small. Reading
        this waits for the device. Always 0 for other pages.
        """
        return ffi.cache.count_saturated(self._handle)

    @property
    def num_available_tokens(self) -> int:
        """Tokens that the free pages hold."""
        return self.num_available_pages * self.page_size

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

        Pages behind the window and its horizon are evicted.

        Parameters
        ----------
        seq_id : int
            The sequence.
        size : int
            A token sees the last ``size`` positions, its own included.
        sinks : int
            A token also sees the first ``sinks`` positions (StreamingLLM, Xiao et al. 2023,
            arXiv:2309.17453).
        horizon : int
            How many tokens the sequence can be popped or rolled back.
        renumber_sinks : bool
            By default a sink keeps its position. If True, it moves along just before the window,
            as in StreamingLLM: a token at position p attends to the sinks as if it were at
            ``min(p, size + sinks - 1)``. The cache must apply RoPE. Windows that are set through
            TVM's function are of this kind.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a size is out of range, if tokens that the window would show have been evicted, or if
            sinks are to be renumbered in a cache without RoPE.
        """
        ffi.cache.set_sliding_window(self._handle, seq_id, size, sinks, horizon, renumber_sinks)

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If it has fewer tokens.
        """
        ffi.cache.popn(self._handle, seq_id, n)
