"""What a verify call decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree, as_trees, encode_trees

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_NO_PARENTS: Int32 = np.empty(0, np.int32)


class Verification:
    """The outcome of one ``kvctl.verify`` call over B sequences.

    Attributes
    ----------
    lossless : bool
        Whether the emitted tokens follow the target's distribution.
    errors : list of str
        Why each sequence could not be decided, empty for those that were. Such a sequence emits
        nothing, keeps its root, and its bonus is -1. Without ``errors="status"`` it is an error.
    log_probs : list of numpy.ndarray or None
        float64, the log-probability of each emitted token under the processed target distribution
        (at temperature 0, under the distribution of temperature 1); None unless asked for.
    """

    def __init__(
        self,
        trees: Sequence[TokenTree],
        begins: Int64,
        out: Int32,
        log_probs: npt.NDArray[np.float64] | None,
        *,
        lossless: bool,
        errors: Sequence[str] | None = None,
    ) -> None:
        """Take apart what ``kvctl.verify.run`` wrote to `out` (cpp/runtime/verify)."""
        size = len(trees)
        self._trees = trees
        self._both_begins = begins
        self._out = out
        self.lossless = lossless
        self.errors = [str(e) for e in errors] if errors is not None else [""] * size
        self.log_probs = (
            None
            if log_probs is None
            else [
                log_probs[begin : begin + n]
                for begin, n in zip(self._begins, self.num_emitted, strict=False)
            ]
        )

    @classmethod
    def from_paths(
        cls,
        trees: TokenTree | Sequence[TokenTree],
        paths: Sequence[Sequence[int]],
        bonus: Sequence[int],
        *,
        stop_tokens: Sequence[Collection[int]] | None = None,
        lossless: bool = False,
    ) -> Verification:
        """Return the outcome that a decision of your own amounts to.

        Parameters
        ----------
        trees
            The drafted tree of each of B sequences.
        paths
            The accepted nodes of each, from a child of the root on; empty where none was.
        bonus
            (B,) the token after each path; not read where the path holds a stop token.
        stop_tokens
            Those of each sequence: a path and its tokens end at the first.
        lossless
            What the result says of itself.

        Raises
        ------
        ValueError
            If there is not one entry for each sequence, or nodes form no path.
        """
        trees = as_trees(trees)
        size = len(trees)
        stops = [frozenset(s) for s in stop_tokens or [()] * size]
        for name, given in (("paths", paths), ("bonus", bonus), ("stop_tokens", stops)):
            if len(given) != size:
                raise ValueError(f"{name} needs one entry for each of {size}, got {len(given)}")
        _, begins = encode_trees(trees)
        n = int(begins[0, -1])
        out = np.zeros(3 * n + 4 * size, np.int32)
        nodes, tokens, kept = out[: 3 * n].reshape(3, n)
        counts = out[3 * n :].reshape(4, size)
        for b, (tree, path) in enumerate(zip(trees, paths, strict=True)):
            at, emitted = int(begins[0, b]), []
            kept[at], parent, finished = tree.rows[0], 0, False
            for i, node in enumerate(path):
                if not 0 < node < len(tree) or tree.parents[node] != parent:
                    raise ValueError(f"sequence {b}: nodes {list(path)} are no path from the root")
                parent = node
                if finished:
                    continue
                nodes[at + i], kept[at + i + 1] = node, tree.rows[node]
                emitted.append(int(tree.tokens[node]))
                finished = emitted[-1] in stops[b]
            counts[0, b] = len(emitted)
            if not finished:
                emitted.append(int(bonus[b]))
                finished = emitted[-1] in stops[b]
            tokens[at : at + len(emitted)] = emitted
            counts[1:, b] = len(emitted), -1 if finished else emitted[-1], finished
        return cls(trees, begins, out, None, lossless=lossless)

    def __len__(self) -> int:
        return len(self._trees)

    # The arrays that few callers read are made when they are read: a call of few rows takes
    # microseconds.

    @property
    def _begins(self) -> Int64:
        begins: Int64 = self._both_begins[0]
        return begins

    @property
    def _row_begins(self) -> Int64:
        begins: Int64 = self._both_begins[1]
        return begins

    def _counts(self, which: int) -> Int32:
        """(B,) int32, one of the four that end `_out`."""
        size = len(self)
        begin = len(self._out) + (which - 4) * size
        return self._out[begin : begin + size]

    @cached_property
    def num_accepted(self) -> Int32:
        """(B,) int32, accepted drafted tokens of each sequence."""
        return self._counts(0)

    @cached_property
    def num_emitted(self) -> Int32:
        """(B,) int32, emitted tokens of each sequence.

        One more than accepted, or as many where an accepted one was a stop token.
        """
        return self._counts(1)

    @cached_property
    def bonus(self) -> Int32:
        """(B,) int32, the next root of each sequence.

        That is the token emitted last, which no forward has seen yet; -1 where the sequence is
        finished.
        """
        return self._counts(2)

    @property
    def _per_node(self) -> Int32:
        """(3, N) int32: accepted nodes, emitted tokens, kept rows."""
        return self._out[: len(self._out) - 4 * len(self)].reshape(3, -1)

    @cached_property
    def finished(self) -> npt.NDArray[np.bool_]:
        """(B,) bool, whether a stop token was emitted. What came after it was dropped."""
        return self._counts(3).astype(bool)

    @cached_property
    def draft_mismatch(self) -> npt.NDArray[np.bool_]:
        """(B,) bool, whether a drafted token had probability 0 under its draft distribution.

        On the CPU that is an error instead, so here it is False.
        """
        return np.zeros(len(self), bool)

    @property
    def next_tokens(self) -> Int32:
        """(B,) int32, another name of `bonus`: the token that each sequence goes on from.

        It exists after every round, whether all drafts were accepted or none; -1 where the
        sequence is finished.
        """
        return self.bonus

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The emitted tokens of each sequence: accepted drafts, then the bonus."""
        emitted = self._per_node[1]
        return [
            emitted[begin : begin + n].tolist()
            for begin, n in zip(self._begins, self.num_emitted, strict=False)
        ]

    @cached_property
    def accepted_nodes(self) -> list[list[int]]:
        """The accepted drafted nodes of each sequence, in path order; the root is not one."""
        nodes = self._per_node[0]
        return [
            nodes[begin : begin + n].tolist()
            for begin, n in zip(self._begins, self.num_accepted, strict=False)
        ]

    @cached_property
    def kept(self) -> list[list[int]]:
        """The pending rows to keep in each sequence, the root's first: what ``commit`` takes."""
        kept = self._per_node[2]
        return [
            kept[begin : begin + n + 1].tolist()
            for begin, n in zip(self._begins, self.num_accepted, strict=False)
        ]

    @cached_property
    def rows(self) -> Int32:
        """The kept rows as rows of the logits, one sequence after another; int32.

        For gathering hidden states: ``hidden[result.rows]``.
        """
        return np.concatenate(
            [np.asarray(kept, np.int32) + begin for kept, begin in self._kept_rows()]
            or [np.empty(0, np.int32)]
        ).astype(np.int32)

    def _kept_rows(self) -> list[tuple[list[int], int]]:
        return [(k, int(b)) for k, b in zip(self.kept, self._row_begins, strict=False)]

    @cached_property
    def acceptance(self) -> tuple[Int64, Int64]:
        """Acceptance by position: how often each depth was reached, and how often accepted.

        Depth d (index d - 1) is reached where the accepted path holds d - 1 tokens or more and has
        a drafted token to offer next; it is accepted where the path holds d tokens or more. Both
        are (D,) int64 over the batch.
        """
        parents = np.concatenate([tree.parents for tree in self._trees] or [_NO_PARENTS])
        has_child = np.zeros(len(parents) + 1, bool)
        starts = np.repeat(self._begins[:-1], np.diff(self._begins))
        inner = parents >= 0
        has_child[starts[inner] + parents[inner]] = True
        n = self.num_accepted.astype(np.int64)
        begins = self._begins[:-1]
        last = np.where(n > 0, self._per_node[0, begins + np.maximum(n - 1, 0)], 0)
        cut = self.finished & (self.num_emitted == n)
        reached_depth = n + (has_child[begins + last] & ~cut)
        depth = int(reached_depth.max(initial=0))
        positions = np.arange(1, depth + 1)
        reached = (reached_depth[:, None] >= positions).sum(axis=0)
        accepted = (n[:, None] >= positions).sum(axis=0)
        return reached.astype(np.int64), accepted.astype(np.int64)

    def __repr__(self) -> str:
        return (
            f"Verification({len(self)} sequences, {int(self.num_emitted.sum())} tokens emitted, "
            f"{int(self.num_accepted.sum())} of them drafted)"
        )
