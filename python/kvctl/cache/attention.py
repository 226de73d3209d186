"""Attention over a paged KV cache, and the page selector and observer of any model's attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.convert import to_input, to_tensor
from .._ffi.integers import to_shape
from .sequences import SequenceStore


class CacheAttention(SequenceStore):
    """The part of :class:`kvctl.PagedKVCache` that attends."""

    _handle: ffi.PagedKVCacheHandle
    head_dim: int

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
    ) -> tvm_ffi.Tensor:
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
            The softmax weight of each column, summed over the new tokens (and over the query heads
            of a KV head), is added to it. Columns are those of all sequences of the
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
        return ffi.cache.attend(
            self._handle,
            layer,
            to_input(qkv, "qkv"),
            None if out is None else to_tensor(out, "out"),
            self.head_dim**-0.5 if sm_scale is None else sm_scale,
            soft_cap,
            None if alibi_slopes is None else to_input(alibi_slopes, "alibi_slopes"),
            None if sinks is None else to_input(sinks, "sinks"),
            None if lse is None else to_tensor(lse, "lse"),
            None if mass is None else to_tensor(mass, "mass"),
        )

    def select_pages(self, select: Callable[[int, Any], Sequence[Any]] | None) -> None:
        """Let a function of the queries choose the pages to attend to (Quest, arXiv:2406.10774).

        Parameters
        ----------
        select : callable or None
            ``select(layer, q)`` is called at each attention call, of a compiled model too, with the
            rotated queries ``(total_new, num_qo_heads, head_dim)`` of the step, and returns for
            each sequence of the step the indices of the pages to attend to, or None for all pages,
            or a list with one of either for each KV head. Page i holds columns
            ``[i * page_size, (i + 1) * page_size)``. Attention always covers pages with new tokens,
            and the step's mask applies as well. The function must not use the cache. The attention
            call raises what it raises, as ``RuntimeError`` if the type is your own. None removes
            the function.
        """
        if select is None:
            ffi.cache.set_page_selector(self._handle, None)
            return
        choose = select

        def answer(layer: int, q: Any) -> list[Any]:
            return [_pages(pages) for pages in choose(layer, q)]

        ffi.cache.set_page_selector(self._handle, tvm_ffi.convert(answer))

    def observe_attention(
        self,
        observer: Callable[[int, list[int], list[Any]], None] | None,
        *,
        heads: str = "kv",
        last: int = 0,
    ) -> None:
        """Observe the softmax weights of each token, in compiled models too.

        H2O (arXiv:2306.14048) and SnapKV (arXiv:2404.14469) rank tokens by their sums to choose
        which ones to drop; :class:`kvctl.AttentionMass` adds them up. Attention computes the scores
        a second time for the observer.

        Parameters
        ----------
        observer : callable or None
            ``observer(layer, seq_ids, sums)`` is called after each attention call of the step with
            one float32 tensor ``(columns, heads)`` for each sequence: the softmax weights of each
            column, summed over the new tokens. It must not use the cache. The attention call raises
            what it raises, as ``RuntimeError`` if the type is your own. None removes it.
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
        ffi.cache.set_observer(self._handle, tell, heads == "qo", last)


def _pages(answer: Any) -> Any:
    """Return a page selector's answer for one sequence as FFI functions take it."""
    if answer is None:
        return None
    pages = list(answer)
    if any(one is None or np.ndim(one) > 0 for one in pages):  # an answer for each KV head
        return [None if one is None else to_shape(one, "pages", ordered=False) for one in pages]
    return to_shape(pages, "pages", ordered=False)
