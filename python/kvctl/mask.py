"""Attention masks as values: which keys in the cache each new token may see.

Longer than 300 lines: it is one class, and most of it is docstrings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm_ffi import Tensor, from_dlpack

from . import _core
from ._ffi.integers import one_int32, to_int32
from .drawing import mask_plot

_PICTURE_ROWS = 64
_PICTURE_COLUMNS = 96


def _bool(values: npt.ArrayLike, what: str) -> npt.NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} needs two axes (new tokens, keys), got shape {array.shape}")
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"{what} must be boolean (True: visible), got {array.dtype}; "
            "for an additive float mask pass (mask == 0)"
        )
    return np.ascontiguousarray(array, dtype=np.bool_)


def _index(value: int, name: str) -> int:
    index = one_int32(value, name)
    if index < 0:
        raise ValueError(f"{name} must be at least 0, got {index}")
    return index


def _cores(masks: Sequence[Mask]) -> list[_core.Mask]:
    if isinstance(masks, Mask) or not all(isinstance(mask, Mask) for mask in masks):
        raise TypeError("masks must be a sequence of kvctl.Mask")
    return [mask._core for mask in masks]


class Mask:
    """Which keys of a sequence each of its new tokens (queries) may see.

    A mask replaces causality; past tokens stay visible unless the mask hides them. Masks are
    immutable values and not bound to a cache. ``begin_forward`` checks them, and raises
    ``ValueError`` if one does not fit its sequence. ``a & b``, ``a | b`` and ``~a`` combine masks;
    the complement is taken over past and new keys. Masks are equal if the same expression made
    them.

    A *key* is a token in the cache, past or new, counted from 0. A *position* is the logical one:
    depth in a tree of pending tokens, the original position after eviction.

    Examples
    --------
    Hide keys 10 to 19 from the second of three new tokens only:

    >>> mask = Mask.causal() & ~Mask.ranges([[], [(10, 20)], []])
    >>> cache.begin_forward([0], [3], mask=mask)  # doctest: +SKIP
    """

    __slots__ = ("_core",)

    def __init__(self) -> None:
        """Make the causal mask; use the class methods for others."""
        self._core = _core.Mask.causal()

    @classmethod
    def _wrap(cls, core: _core.Mask) -> Mask:
        mask = cls.__new__(cls)
        mask._core = core
        return mask

    @classmethod
    def causal(cls) -> Mask:
        """Every key up to the query itself; in a pending tree: past, ancestors, itself."""
        return cls._wrap(_core.Mask.causal())

    @classmethod
    def tree(cls, parents: npt.ArrayLike) -> Mask:
        """Make a token tree: a query sees the committed past, its ancestors and itself.

        Parameters
        ----------
        parents : array_like of int, shape (num_new,) or (num_pending,)
            Parent of each new token, or of each pending token, the new ones last: an earlier index
            of the pending region, which includes tokens left pending by earlier forwards, or -1 for
            the committed past. Whether it is earlier is checked when a step begins.

        Raises
        ------
        ValueError
            For a parent below -1.
        """
        return cls._wrap(_core.Mask.tree(to_int32(parents, "parents")))

    @classmethod
    def dense(cls, visible: npt.ArrayLike) -> Mask:
        """Any relation among the new tokens; every key before them is visible.

        Parameters
        ----------
        visible : array_like of bool, shape (num_new, num_new)
            ``visible[i, j]``: new token i may see new token j.
        """
        return cls._wrap(_core.Mask.dense(_bool(visible, "a dense mask")))

    @classmethod
    def full(cls, visible: npt.ArrayLike) -> Mask:
        """Any relation over past and new.

        Parameters
        ----------
        visible : array_like of bool, shape (num_new, num_columns)
            ``num_columns`` counts all keys in the cache after the append, new tokens included.
        """
        return cls._wrap(_core.Mask.full(_bool(visible, "a full mask")))

    @classmethod
    def window(cls, size: int, sinks: int = 0) -> Mask:
        """Causal within a window: the last ``size`` positions and the first ``sinks``.

        The query's own position is one of the ``size``. This is the window of StreamingLLM (Xiao et
        al. 2023, arXiv:2309.17453).

        Raises
        ------
        ValueError
            If ``size`` is below 1 or ``sinks`` below 0.
        """
        return cls._wrap(_core.Mask.window(one_int32(size, "size"), one_int32(sinks, "sinks")))

    @classmethod
    def prefix_lm(cls, length: int) -> Mask:
        """Causal, except that the first ``length`` positions are visible to every query."""
        return cls._wrap(_core.Mask.prefix_lm(one_int32(length, "length")))

    @classmethod
    def documents(cls, ids: npt.ArrayLike, *, causal: bool = True) -> Mask:
        """Packed documents: a query sees its own document.

        Parameters
        ----------
        ids : array_like of int, shape (num_columns,)
            The document of every key, past and new.
        causal : bool
            Whether a query sees only keys up to itself; False also shows later keys.
        """
        same = cls._wrap(_core.Mask.documents(to_int32(ids, "ids")))
        return cls.causal() & same if causal else same

    @classmethod
    def ranges(cls, rows: Sequence[Iterable[tuple[int, int]]]) -> Mask:
        """Exactly the listed keys; past keys must be listed too.

        Parameters
        ----------
        rows : sequence of iterables of (begin, end)
            For each new token the half-open ranges of keys that it sees, in any order.
        """
        try:
            pairs = [[(begin, end) for begin, end in row] for row in rows]
        except (TypeError, ValueError):
            raise TypeError(
                "ranges must hold for each new token a list of pairs (begin, end), "
                f"got {rows!r:.200}"
            ) from None
        return cls._wrap(
            _core.Mask.ranges(
                [[(one_int32(a, "begin"), one_int32(b, "end")) for a, b in row] for row in pairs]
            )
        )

    @classmethod
    def per_layer(cls, masks: Sequence[Mask], layers: npt.ArrayLike) -> Mask:
        """Choose a mask per layer.

        Parameters
        ----------
        masks : sequence of Mask
            The masks to choose from.
        layers : array_like of int, shape (num_layers,)
            Index into ``masks`` of each layer of the model.
        """
        choice = to_int32(layers, "layers").tolist()
        return cls._wrap(_core.Mask.per_layer(_cores(masks), choice))

    @classmethod
    def per_head(cls, masks: Sequence[Mask], heads: npt.ArrayLike) -> Mask:
        """Choose a mask per KV head; allowed as one of the masks of :meth:`per_layer`.

        Parameters
        ----------
        masks : sequence of Mask
            The masks to choose from.
        heads : array_like of int, shape (num_kv_heads,)
            Index into ``masks`` of each KV head.
        """
        choice = to_int32(heads, "heads").tolist()
        return cls._wrap(_core.Mask.per_head(_cores(masks), choice))

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._wrap(self._core & other._core)

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._wrap(self._core | other._core)

    def __invert__(self) -> Mask:
        return self._wrap(~self._core)

    def __bool__(self) -> bool:
        raise TypeError("a mask is neither true nor false; combine masks with &, | and ~")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return np.array_equal(self.encode(), other.encode())

    def __hash__(self) -> int:
        return hash(self.encode().tobytes())

    @property
    def tree_parents(self) -> npt.NDArray[np.int32] | None:
        """Parents of the one tree inside the expression, or None."""
        parents: npt.NDArray[np.int32] | None = self._core.tree_parents()
        return parents

    def to_numpy(
        self,
        num_new: int,
        num_columns: int,
        *,
        num_pending: int | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Return the boolean matrix that attention would apply.

        Parameters
        ----------
        num_new : int
            New tokens, the last keys of the sequence.
        num_columns : int
            Keys in the cache after the append.
        num_pending : int, optional
            Pending tokens, the new ones included; by default those of the tree inside the mask, or
            the new ones.
        layer, head : int, optional
            Which layer's and which KV head's matrix; needed where the mask differs between them.

        Returns
        -------
        numpy.ndarray of bool, shape (num_new, num_columns)

        Raises
        ------
        ValueError
            If the mask does not fit such a sequence, or differs between layers or heads of which
            none is named.
        """
        if num_pending is None:
            parents = self.tree_parents
            num_pending = num_new if parents is None else len(parents)
        matrix: npt.NDArray[np.bool_] = self._core.materialize(
            one_int32(num_new, "num_new"),
            one_int32(num_columns, "num_columns"),
            one_int32(num_pending, "num_pending"),
            -1 if layer is None else _index(layer, "layer"),
            -1 if head is None else _index(head, "head"),
        )
        return matrix

    def picture(self, num_new: int, num_columns: int, *, num_pending: int | None = None) -> str:
        """Draw the mask in characters, a line per new token: ``#`` visible, ``.`` hidden.

        A bar separates the past from the new tokens. Raises ``ValueError`` if the mask is too large
        to read (see :meth:`plot`).
        """
        if num_new > _PICTURE_ROWS or num_columns > _PICTURE_COLUMNS:
            raise ValueError(
                f"a picture holds at most {_PICTURE_ROWS} rows and {_PICTURE_COLUMNS} columns, "
                f"got {num_new} and {num_columns}; plot() draws larger masks"
            )
        matrix = self.to_numpy(num_new, num_columns, num_pending=num_pending)
        lines = ("".join("#" if seen else "." for seen in row) for row in matrix)
        past = num_columns - num_new
        return "\n".join(line[:past] + "|" + line[past:] if past else line for line in lines)

    def plot(
        self, num_new: int, num_columns: int, *, num_pending: int | None = None, ax: Any = None
    ) -> Any:
        """Draw the mask with matplotlib (an optional dependency: ``pip install kvctl[plot]``).

        A cell is black where the new token of its row sees the key of its column. A mask that
        differs between layers or KV heads is drawn once for each group of them, one below the
        other. Cells of large masks stand for several keys, grey where some of them are visible.

        Parameters
        ----------
        num_new, num_columns, num_pending
            As in :meth:`to_numpy`.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            As :meth:`to_numpy`.
        """
        blocks = []
        for layers, heads in self._core.parts():
            matrix = self.to_numpy(
                num_new,
                num_columns,
                num_pending=num_pending,
                layer=layers[0] if layers else None,
                head=heads[0] if heads else None,
            )
            blocks.append((mask_plot.block_title(layers, heads), matrix))
        return mask_plot.draw_masks(blocks, ax)

    def encode(self) -> npt.NDArray[np.int32]:
        """Return the mask as one flat int32 buffer, which :meth:`decode` reads."""
        code: npt.NDArray[np.int32] = self._core.encode()
        return code

    @classmethod
    def decode(cls, code: npt.ArrayLike) -> Mask:
        """Decode the buffer of :meth:`encode`; ``ValueError`` if it does not hold a mask."""
        return cls._wrap(_core.Mask.decode(to_int32(code, "code")))

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return Mask.decode, (self.encode(),)

    def __repr__(self) -> str:
        """Return the expression, followed by a picture if it holds a small tree."""
        text = f"Mask: {self._core}"
        parents = self.tree_parents
        if parents is None or not 0 < len(parents) <= _PICTURE_ROWS:
            return text
        try:
            return f"{text}\n{self.picture(len(parents), len(parents))}"
        except ValueError:  # the mask also covers keys before the tree
            return text

    def __tvm_ffi_value__(self) -> Tensor:
        """Cross the FFI as an int32 tensor."""
        return from_dlpack(self.encode())
