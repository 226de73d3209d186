"""K and V in a paged KV cache: read them, evict some, save them to a file and load them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .._ffi import functions as ffi
from .._ffi.convert import to_numpy, to_tensor
from .._ffi.integers import to_shape
from ..drawing.page_plot import PageRow, draw_pages
from .sequences import SequenceStore

if TYPE_CHECKING:
    from tvm_ffi import Tensor


class CacheContents(SequenceStore):
    """The part of :class:`kvctl.PagedKVCache` that reads and changes what its pages hold."""

    _handle: ffi.PagedKVCacheHandle
    num_pages: int
    page_size: int

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, its pending nodes and those of a step in flight included."""
        return ffi.vm_builtin.attention_kv_cache_get_sequence_length(self._handle, seq_id)

    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        """Keep some committed tokens of a sequence and drop the others, in every layer.

        By default the kept tokens keep their positions, and the next token gets the position that
        it would have had, so windows and ALiBi still measure original distances. The sequence then
        has as many tokens as were kept. Token i is the i-th kept one for :meth:`popn`,
        :meth:`get_kv`, masks and further evictions. Pages shared with a fork or a checkpoint do not
        change: :meth:`rollback` to an earlier checkpoint undoes the eviction.

        Parameters
        ----------
        seq_id : int
            The sequence, which must have no pending nodes.
        keep : sequence of int, or array
            The tokens that stay: ascending indices, or one boolean for each committed token. What a
            sliding window has evicted cannot be kept.
        rerotate : bool
            Number the kept tokens 0, 1, 2, ... and rotate their keys to these positions, as if the
            cache held nothing else; the next token follows on. StreamingLLM (Xiao et al. 2023,
            arXiv:2309.17453, section 3.2) does so. Each rotation of 16-bit keys rounds them once
            more, by up to half a unit in the last place, except with inline RoPE. Those of int8
            pages are quantised again, each with a new scale, those of float8_e4m3fn pages with
            their head's. If a function of the model library rotates, the cache first tries it on
            these positions, and then rotates the keys with it. The rotated keys take extra host
            memory until they are written.

        Raises
        ------
        KeyError, IndexError
            If there is no such sequence or token.
        ValueError
            If the sequence has pending nodes (commit or abort them first), or ``keep`` does not
            ascend, is a mask of another length, or names tokens that a window has evicted.
        NotImplementedError
            If the cache did not rotate the keys that are to be rotated, or if the rotation of the
            model library's function does not depend on the position alone: it also scales (as with
            an attention scale of YaRN or LongRoPE), depends on the number of tokens in a step
            (LongRoPE's choice of factors), or changes its frequencies with the position (dynamic
            NTK).
        kvctl.OutOfPagesError
            If shared pages would have to be copied and none is free. A sequence that shares nothing
            needs none.
        """
        length = self.sequence_length(seq_id) - self.pending_length(seq_id)
        ffi.cache.evict(
            self._handle, seq_id, to_shape(kept_indices(keep, length), "keep"), rerotate
        )

    def save_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> None:
        """Write the committed tokens of a sequence to a file, for :meth:`load_sequence`.

        The file is a safetensors file with the tensors ``k`` and ``v``, each ``(num_layers, tokens,
        num_kv_heads, head_dim)``, and ``positions`` where they are not 0, 1, 2, ...; with int8
        pages also ``k_scale`` and ``v_scale``. Those of float8_e4m3fn pages are bytes (uint8), and
        their scales part of the layout. See
        :mod:`kvctl.cache.sequence_file`. Positions and the sliding window go with it, checkpoints
        do not.

        Raises
        ------
        KeyError
            If there is no such sequence.
        ValueError
            If it has pending nodes: commit or abort them first. If something that is no file, a
            directory or a device, has that name.
        OSError
            If the file cannot be written; one of that name is then left as it was.
        """
        from .sequence_file import NUMBERS, SequenceFile

        saved = ffi.cache.save_sequence(self._handle, seq_id)
        numbers = {field: int(getattr(saved, field)) for field in NUMBERS.values()}
        positions, k, v = to_numpy(saved.positions), to_numpy(saved.k), to_numpy(saved.v)
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
        saved = ffi.SavedSequenceRecord(
            **file.numbers,
            positions=None if file.positions is None else to_tensor(file.positions),
            k=to_tensor(file.k),
            v=to_tensor(file.v),
        )
        ffi.cache.load_sequence(self._handle, seq_id, saved)

    def _kv_layout(self) -> dict[str, Any]:
        layout: dict[str, Any] = json.loads(str(ffi.cache.get_kv_layout(self._handle)))
        return layout

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """K and V of tokens ``[begin, end)`` as the cache holds them; float32 for pages of 8 bits.

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
        k, v = ffi.cache.get_kv(self._handle, seq_id, begin, -1 if end is None else end)
        return k, v

    def page_ids(self, seq_id: int) -> list[int]:
        """Return the pages of a sequence, in the order of its tokens.

        Page i holds the tokens from ``i * page_size`` on. It is -1 where a sliding window evicted
        all of them.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        return [int(page) for page in ffi.cache.get_page_ids(self._handle, seq_id)]

    def plot(self, *, ax: Any = None) -> Any:
        """Draw which sequence holds which pages; needs matplotlib (``pip install kvctl[plot]``).

        A row is a sequence, a cell one of its pages with its number, filled as far as it holds
        tokens: committed ones in grey, pending ones hatched. Pages that several sequences share
        have a bold frame and number.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        rows = [
            PageRow(id, self.page_ids(id), self.sequence_length(id), self.pending_length(id))
            for id in map(int, ffi.cache.get_sequence_ids(self._handle))
        ]
        free = ffi.vm_builtin.attention_kv_cache_get_num_available_pages(self._handle)
        return draw_pages(rows, self.page_size, free, ax)

    def debug_poison(self) -> None:
        """Fill every slot that no sequence and no checkpoint uses with NaN."""
        ffi.cache.debug_poison(self._handle)


def kept_indices(keep: Any, length: int) -> Iterable[int]:
    """Return indices for indices or a boolean mask over ``length`` tokens."""
    array = np.from_dlpack(keep) if hasattr(keep, "__dlpack__") else np.asarray(keep)
    if array.ndim == 0:
        raise TypeError(f"keep must be a sequence of indices or booleans, got {keep!r}")
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
