"""Rounds recorded once, to run every rule over them offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from .._ffi.integers import one_int32
from ..tree import TokenTree, as_trees, encode_trees
from .flatten import DRAWN, RULES, drawn_kinds, kind
from .request import set_draft, set_target, set_trees
from .sampling import Sampling
from .trace_file import Arrays, read_trace, write_trace

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """What a rule would have made of the rounds of a trace, exactly.

    Attributes
    ----------
    emitted : numpy.ndarray
        (rounds,) float64, expected tokens of each round given its drafted tree.
    nodes : numpy.ndarray
        (rounds,) int64, drafted nodes that were verified.
    depth_rates : numpy.ndarray
        (D,) float64, the probability that the accepted path is at least 1 ... D tokens long, mean
        over rounds.
    """

    emitted: Float64
    nodes: npt.NDArray[np.int64]
    depth_rates: Float64

    @property
    def mean_emitted(self) -> float:
        """Expected tokens of a round."""
        return float(self.emitted.mean())

    def speedup(self, cost: Callable[[int], float]) -> float:
        """Return how many times faster than plain decoding such rounds are.

        Parameters
        ----------
        cost
            Drafted nodes -> what drafting and verifying them costs, a plain step being 1.

        Raises
        ------
        ValueError
            If a cost is not positive.
        """
        costs = [cost(int(n)) for n in self.nodes]
        if not all(c > 0 for c in costs):
            raise ValueError(f"the cost of a round must be positive, got {min(costs)}")
        return float(self.emitted.sum() / sum(costs))


class Trace:
    """Drafted trees with the distributions around them.

    `add` records a round; `save` and `load` keep rounds in a plain NumPy archive; `replay` runs a
    rule over them. Distributions are stored in float32 as they are: 4 bytes for each entry of the
    vocabulary, twice per row.

    Attributes
    ----------
    trees : list of TokenTree
        The drafted tree of each round.
    drawn : list of tuple of str
        How each node was drawn.
    """

    def __init__(self) -> None:
        self.trees: list[TokenTree] = []
        self.drawn: list[tuple[str, ...]] = []
        self._target: list[Float32] = []
        self._draft: list[Float32] = []

    def __len__(self) -> int:
        return len(self.trees)

    def add(
        self,
        tree: TokenTree,
        *,
        target_probs: npt.ArrayLike,
        draft_probs: npt.ArrayLike | None = None,
        drawn: str | Sequence[str],
    ) -> None:
        """Record one round.

        Parameters
        ----------
        tree
            The drafted tree, the larger the better: replays can cut it down.
        target_probs
            (R, V) the target's distributions, processed as they would be sampled from.
        draft_probs
            (R, V) the distributions the children of each row were drawn from; None if nothing was
            drawn from a distribution.
        drawn
            As in ``kvctl.verify``, for one tree.

        Raises
        ------
        ValueError
            If shapes do not fit each other or the rounds before.
        TypeError
            If `tree` is no tree.
        """
        as_trees([tree])
        target = np.array(target_probs, np.float32)
        if target.ndim != 2 or len(target) != tree.num_rows:
            raise ValueError(f"target_probs must be ({tree.num_rows}, V), got {target.shape}")
        if self._target and target.shape[1] != self._target[0].shape[1]:
            raise ValueError(
                f"the trace is of a vocabulary of {self._target[0].shape[1]}, not {target.shape[1]}"
            )
        draft = np.zeros_like(target) if draft_probs is None else np.array(draft_probs, np.float32)
        if draft.shape != target.shape:
            raise ValueError(f"draft_probs must be {target.shape}, got {draft.shape}")
        names = (drawn,) * len(tree) if isinstance(drawn, str) else tuple(drawn)
        drawn_kinds([tree], [names])  # checks them
        self.trees.append(tree)
        self.drawn.append(names)
        self._target.append(target)
        self._draft.append(draft)

    def save(self, path: str | Path) -> None:
        """Write all rounds to a NumPy archive (``.npz``)."""
        _, ptrs = encode_trees(self.trees)
        parts = [
            [part for tree in self.trees for part in getattr(tree, name)]
            for name in ("tokens", "parents", "rows")
        ]
        kinds = [DRAWN.index(name) for names in self.drawn for name in names]
        nodes = np.array([*parts, kinds], np.int32)
        nothing = [np.empty((0, 0), np.float32)]
        arrays: Arrays = {
            "nodes": nodes,
            "ptrs": ptrs,
            "drawn_names": np.array(DRAWN),
            "target": np.concatenate(self._target or nothing),
            "draft": np.concatenate(self._draft or nothing),
        }
        write_trace(path, arrays)

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int = 1 << 32) -> Trace:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.
        max_bytes
            What its arrays may take in memory: distributions pack well, and a file of one megabyte
            can unpack to a gigabyte.

        Raises
        ------
        ValueError
            If the file is not such an archive, or damaged, or larger than `max_bytes`.
        OSError
            If it cannot be read.
        """
        trace = cls()
        arrays = read_trace(path, max_bytes)
        nodes, ptrs, names = arrays["nodes"], arrays["ptrs"], arrays["drawn_names"]
        target, draft = arrays["target"], arrays["draft"]
        for (begin, end), rows in zip(
            zip(ptrs[0, :-1], ptrs[0, 1:], strict=True),
            zip(ptrs[1, :-1], ptrs[1, 1:], strict=True),
            strict=True,
        ):
            tokens, parents, node_rows, kinds = nodes[:, begin:end]
            trace.add(
                TokenTree(tokens, parents, rows=node_rows),
                target_probs=target[slice(*rows)],
                draft_probs=draft[slice(*rows)],
                drawn=[str(names[k]) for k in kinds],
            )
        return trace

    def replay(
        self,
        rule: str,
        *,
        depth: int | None = None,
        width: int | None = None,
        nodes: int | None = None,
        drawn: str | None = None,
    ) -> Replay:
        """Run a rule over all rounds, exactly: no random numbers.

        The limits cut every tree by draw order and depth alone, never by value, so what is left
        still follows the distribution it was drawn from.

        Parameters
        ----------
        rule
            A name, as in ``kvctl.verify``.
        depth
            Drop nodes deeper than this.
        width
            Keep the first so many children of each node.
        nodes
            Keep the first so many drafted nodes, breadth first.
        drawn
            Declare all nodes drawn like this, instead of as recorded: ``deterministic`` is always
            allowed.

        Raises
        ------
        ValueError
            If the rule would be biased for these trees, or there are none, or a limit is negative,
            or nodes were drawn coupled: they share the target's noise, so nothing is left to
            average over.
        """
        if not self.trees:
            raise ValueError("the trace is empty")
        for name, limit in (("depth", depth), ("width", width), ("nodes", nodes)):
            if limit is not None and one_int32(limit, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {limit}")
        index = kind(rule, RULES, "rule")
        samplings = [Sampling(temperature=0.0 if rule == "greedy" else 1.0)]
        emitted, counts, survival = [], [], np.zeros(1)
        for tree, names, target, draft in zip(
            self.trees, self.drawn, self._target, self._draft, strict=True
        ):
            kept = _within(tree, depth, width, nodes)
            small = _subtree(tree, kept)
            kinds = [drawn or names[i] for i in kept]
            request = ffi.verify.new_request()
            request.rule = index
            request.epsilon, request.delta = 0.09, 0.3
            set_trees(request, [small], [kinds])
            set_target(request, target[: small.num_rows], samplings, probabilities=True)
            set_draft(request, draft[: small.num_rows], per_node=False)
            last: Any = np.empty(len(small), np.float64)
            ffi.verify.get_last_accepted(request, True, last)
            lengths = small.depths
            emitted.append(float(last @ lengths) + 1.0)
            counts.append(len(small) - 1)
            if len(survival) < lengths.max() + 1:
                survival = np.pad(survival, (0, int(lengths.max()) + 1 - len(survival)))
            survival += [float(last[lengths >= d].sum()) for d in range(len(survival))]
        return Replay(np.array(emitted), np.array(counts), survival[1:] / len(self.trees))


def _within(tree: TokenTree, depth: int | None, width: int | None, nodes: int | None) -> list[int]:
    """Return the nodes inside the limits, in node order."""
    kept, children = {0}, np.zeros(len(tree), np.int64)
    for node in range(1, len(tree)):
        parent = int(tree.parents[node])
        children[parent] += 1
        if parent not in kept:
            continue
        if (depth is None or tree.depths[node] <= depth) and (
            width is None or children[parent] <= width
        ):
            kept.add(node)
    if nodes is not None:
        order = sorted(kept, key=lambda node: (int(tree.depths[node]), node))
        kept = set(order[: nodes + 1])
    return sorted(kept)


def _subtree(tree: TokenTree, kept: Sequence[int]) -> TokenTree:
    """Return the tree of some nodes, closed under parents; rows stay."""
    new: dict[int, Any] = {-1: -1, **{node: i for i, node in enumerate(kept)}}
    return TokenTree(
        tree.tokens[list(kept)],
        [new[int(tree.parents[node])] for node in kept],
        rows=tree.rows[list(kept)],
    )
