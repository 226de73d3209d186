"""Trees of drafted tokens: what a verify step checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from . import _core
from ._ffi.integers import Int32Array, one_int32, to_int32, to_int64
from .drawing.tree_plot import draw_tree
from .drawing.tree_text import Decode, tree_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .mask import Mask

# Larger trees print as their size alone; to_text draws them.
_DRAWN_NODES = 32


class TokenTree:
    """The drafted tokens of one sequence as a tree; a chain is a tree.

    Node 0 is the root: the last emitted token, which is not in the cache yet, so it is forwarded
    with the drafts and always kept. Siblings are in the order in which they were drawn, and equal
    siblings are legal. A tree is immutable.

    Parameters
    ----------
    tokens
        (n,) integers, the token of each node.
    parents
        (n,) integers, the parent of each node, which precedes it; -1 for node 0 alone.
    rows
        (n,) integers, the row of the sequence's pending region that holds each node's KV and
        logits; by default node i is row i. Nodes may share a row where they are the same token
        behind the same path, and rows may belong to no node.

    Raises
    ------
    ValueError
        If the arrays do not describe such a tree.
    TypeError
        If they are not integers.

    Examples
    --------
    >>> print(kvctl.TokenTree([11, 5, 7, 5], [-1, 0, 0, 1]))
    0:11
    |- 1:5
    |  `- 3:5
    `- 2:7
    """

    def __init__(
        self, tokens: npt.ArrayLike, parents: npt.ArrayLike, *, rows: npt.ArrayLike | None = None
    ) -> None:
        self._core = _core.TokenTree(
            to_int64(tokens, "tokens"),
            to_int64(parents, "parents"),
            None if rows is None else to_int64(rows, "rows"),
        )

    @classmethod
    def _wrap(cls, core: _core.TokenTree) -> TokenTree:
        tree = cls.__new__(cls)
        tree._core = core
        return tree

    @classmethod
    def chain(cls, tokens: npt.ArrayLike) -> TokenTree:
        """Return the tree without branches: node i + 1 follows node i."""
        return cls._wrap(_core.TokenTree.chain(to_int64(tokens, "tokens")))

    @property
    def tokens(self) -> Int32Array:
        """(n,) token of each node, read-only."""
        return self._core.tokens

    @property
    def parents(self) -> Int32Array:
        """(n,) parent of each node, -1 for the root; read-only."""
        return self._core.parents

    @property
    def rows(self) -> Int32Array:
        """(n,) pending row of each node, read-only."""
        return self._core.rows

    @property
    def depths(self) -> Int32Array:
        """(n,) edges between the root and each node, read-only."""
        return self._core.depths

    @property
    def num_rows(self) -> int:
        """The number of rows in a forward of this tree: one more than the largest row of a node."""
        return self._core.num_rows

    @property
    def is_chain(self) -> bool:
        """Whether no node has more than one child."""
        return self._core.is_chain

    def prune(self, scores: npt.ArrayLike, n: int) -> tuple[TokenTree, Int32Array]:
        """Return the best subtree of n nodes, and which nodes they were.

        The root is kept; then, repeatedly, the best-scored node whose parent is kept. With path
        scores, which never grow towards the leaves, these are the n best nodes. Ties go to the
        lower index. Rows are renumbered without gaps.

        Siblings that were drawn at random and then pruned by value no longer follow the
        distribution they were drawn from: ``verify`` them with ``drawn="deterministic"``.

        Parameters
        ----------
        scores
            (len(self),) a score per node; the root's is not read.
        n
            Nodes to keep, the root included.

        Returns
        -------
        tuple
            The smaller tree, and (n,) int32 with the old index of each of its nodes, ascending.

        Raises
        ------
        ValueError
            If n is not in [1, len(self)], or the scores are not one number per node.
        """
        core, nodes = self._core.prune(np.asarray(scores, np.float64), one_int32(n, "n"))
        return self._wrap(core), nodes

    def mask(self) -> Mask:
        """Return the attention mask of the tree's rows: each sees its ancestors and itself.

        Raises
        ------
        ValueError
            If a row belongs to no node: only the caller knows what it may see.
        """
        from .mask import Mask  # here, because mask.py must not depend on trees

        return Mask.tree(self._core.row_parents())

    def to_text(self, *, max_nodes: int | None = None, decode: Decode | None = None) -> str:
        """Draw the tree in characters, a line for each node; trees of any size.

        Parameters
        ----------
        max_nodes
            Draw so many nodes, those nearest to the root first, and say how many are left out; by
            default all.
        decode
            Returns the text of a list of tokens, ``tokenizer.decode`` say; by default the lines
            show the tokens' numbers.

        Raises
        ------
        ValueError
            If `max_nodes` is below 1.
        """
        if max_nodes is not None and one_int32(max_nodes, "max_nodes") < 1:
            raise ValueError(f"max_nodes must be at least 1, got {max_nodes}")
        return tree_text(*self._lists(), max_nodes=max_nodes, decode=decode)

    def plot(
        self,
        *,
        decode: Decode | None = None,
        accepted: Iterable[int] = (),
        ax: Any = None,
    ) -> Any:
        """Draw the tree with matplotlib (an optional dependency: ``pip install kvctl[plot]``).

        Parameters
        ----------
        decode
            As in :meth:`to_text`.
        accepted
            Nodes to draw in bold with the root, as ``result.accepted_nodes[0]`` has them.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure that is large enough for the labels.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If an accepted node is none of the tree's.
        """
        nodes = [one_int32(node, "accepted") for node in accepted]
        for node in nodes:
            if not 0 <= node < len(self):
                raise ValueError(f"accepted names node {node} of a tree of {len(self)}")
        return draw_tree(*self._lists(), decode=decode, accepted=nodes, ax=ax)

    def _lists(self) -> tuple[list[int], list[int], list[int]]:
        return self.tokens.tolist(), self.parents.tolist(), self.depths.tolist()

    def encode(self) -> Int32Array:
        """Return the tree as one flat int32 buffer, which :meth:`decode` reads."""
        return self._core.encode()

    @classmethod
    def decode(cls, code: npt.ArrayLike) -> TokenTree:
        """Read what :meth:`encode` wrote; ``ValueError`` if the buffer does not hold one tree."""
        return cls._wrap(_core.TokenTree.decode(to_int32(code, "code")))

    def __len__(self) -> int:
        return len(self._core)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenTree):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("tokens", "parents", "rows")
        )

    def __hash__(self) -> int:
        return hash((self.tokens.tobytes(), self.parents.tobytes(), self.rows.tobytes()))

    def __str__(self) -> str:
        return str(self._core) if len(self) <= _DRAWN_NODES else repr(self)

    def __repr__(self) -> str:
        if len(self) > _DRAWN_NODES:
            return f"TokenTree({len(self)} nodes, depth {cast(int, self.depths.max())})"
        rows = (
            ""
            if np.array_equal(self.rows, np.arange(len(self)))
            else f", rows={self.rows.tolist()}"
        )
        return f"TokenTree({self.tokens.tolist()}, {self.parents.tolist()}{rows})"

    def __reduce__(self) -> tuple[object, ...]:
        return TokenTree.decode, (self.encode(),)


def as_trees(trees: TokenTree | Sequence[TokenTree]) -> list[TokenTree]:
    """Return the trees of a batch as a list.

    Raises
    ------
    TypeError
        If an element is not a tree.
    """
    many = [trees] if isinstance(trees, TokenTree) else list(trees)
    for tree in many:
        if not isinstance(tree, TokenTree):
            raise TypeError(f"trees must be kvctl.TokenTree, got {type(tree).__name__}")
    return many


def encode_trees(trees: Sequence[TokenTree]) -> tuple[Int32Array, npt.NDArray[np.int64]]:
    """Return the encoded trees of a batch, one after another: how trees cross the FFI.

    Returns
    -------
    tuple
        int32, the buffer; and (2, B + 1) int64, where the nodes and the rows of each tree begin.
    """
    return _core.TokenTree.encode_batch([tree._core for tree in trees])
