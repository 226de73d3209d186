"""The pages of a cache as other kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._ffi import functions as ffi
from .._ffi.integers import to_shape
from .sequences import SequenceStore

if TYPE_CHECKING:
    from tvm_ffi import Tensor


class CachePages(SequenceStore):
    """The part of :class:`kvctl.PagedKVCache` that shows where K and V lie."""

    _handle: ffi.PagedKVCacheHandle

    def layer_pages(self, layer: int) -> Tensor:
        """Return a layer's pages where they lie: a tensor that shares the cache's memory.

        With :meth:`page_table` other kernels (FlashInfer, FlashAttention, Triton) attend over the
        cache: it is FlashInfer's paged layout ``"HND"``. Rotary keys are stored rotated, except
        where the model rotates inline. Slots behind a sequence's last token may hold anything.

        Parameters
        ----------
        layer : int
            The layer.

        Returns
        -------
        tensor, (num_pages, 2, num_kv_heads, page_size, head_dim)
            K, then V, of the cache's dtype on the cache's device. What is written to it changes the
            cache. A row of int8 pages has ``head_dim + 4`` bytes: the last four are its float32
            scale. Elements of float8_e4m3fn pages are to be multiplied by ``kv_scales``.

        Raises
        ------
        IndexError
            If there is no such layer.
        """
        return ffi.cache.get_layer_pages(self._handle, layer)

    def page_table(self, seq_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return where sequences lie in :meth:`layer_pages`, as FlashInfer takes it.

        Key c of sequence i is row ``c % page_size`` of page
        ``indices[indptr[i] + c // page_size]``. During a step its new tokens are included.

        Parameters
        ----------
        seq_ids : sequence of int
            The sequences; one that is named twice has its pages twice.

        Returns
        -------
        indptr : tensor, (len(seq_ids) + 1,) int32
            Where each sequence's pages begin in ``indices``.
        indices : tensor, (pages of all sequences,) int32
            The pages of one sequence after another.
        last_page_len : tensor, (len(seq_ids),) int32
            Keys in each sequence's last page; 0 for an empty sequence.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If a sequence has evicted pages: index arrays cannot leave them out.
        """
        indptr, indices, last_page_len = ffi.cache.get_page_table(
            self._handle, to_shape(seq_ids, "seq_ids", ordered=False)
        )
        return indptr, indices, last_page_len

    def forget_graphs(self) -> None:
        """Say that CUDA graphs recorded with this cache's attention are not replayed any more.

        A recorded graph reads the step's plan where it lay when it was recorded. Once attention
        was captured, :meth:`begin_forward` therefore raises for a step whose plan needs more room;
        after this call it moves the plan, and graphs must be recorded again.
        """
        ffi.cache.forget_graphs(self._handle)
