"""Verifying rows of logits whose columns lie on several workers, without gathering them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree
from .result import Verification
from .sampling import Sampling

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_SOFTMAX = Sampling()


class ShardedLogits(Protocol):
    """Logits (R, V) of which each worker has some columns.

    ``kvctl.verify`` and ``kvctl.sample`` take them where they take logits. Rules greedy and
    target_only ask for `tokens`, where sampling has a temperature alone; other rules and other
    sampling `gather` the rows.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The rows, and the vocabulary."""
        ...

    def gather(self) -> Any:
        """Return the whole rows."""
        ...

    def tokens(
        self,
        temperatures: npt.NDArray[np.float64],
        seed: int,
        request_ids: Int64,
        positions: Int64,
    ) -> Int32:
        """Return the token that is sampled from each row; all arguments but the seed are (R,).

        Returns
        -------
        numpy.ndarray
            (R,) int32, bit by bit what ``kvctl.sample`` gives for the whole rows; negative where
            the sums of the workers do not tell.
        """
        ...


def is_sharded(logits: Any) -> TypeGuard[ShardedLogits]:
    """Return whether logits are `ShardedLogits`, at next to no cost for others."""
    return type(logits) is not np.ndarray and hasattr(type(logits), "tokens")


def is_plain(sampling: Sampling) -> bool:
    """Return whether tokens are sampled by a temperature alone."""
    return sampling.temperature >= 0 and all(
        getattr(sampling, entry.name) == getattr(_SOFTMAX, entry.name)
        for entry in fields(Sampling)
        if entry.name not in ("temperature", "stop_tokens")
    )


def verify_in_shards(
    logits: ShardedLogits,
    trees: Sequence[TokenTree],
    rule: Any,
    samplings: Sequence[Sampling],
    seed: int,
    ids: Int64 | None,
    roots: Int64 | None,
) -> Verification | None:
    """Follow each tree as long as it holds what its rows' tokens are.

    Parameters
    ----------
    logits, trees, rule, samplings, seed
        As ``kvctl.verify`` takes them; one sampling, or one for each tree.
    ids, roots
        (B,) request ids and positions of the roots.

    Returns
    -------
    Verification or None
        None where the whole rows are needed: for another rule, other sampling, what is an error, or
        rows that the workers' sums do not tell.
    """
    size = len(trees)
    samplings = list(samplings) * (size if len(samplings) == 1 else 1)
    greedy = rule == "greedy"
    if rule not in ("greedy", "target_only") or len(samplings) != size:
        return None
    if not all(map(is_plain, samplings)) or (greedy and any(s.temperature for s in samplings)):
        return None
    counts = [tree.num_rows for tree in trees]
    rows, vocab = logits.shape
    inside = all(0 <= tree.tokens.min() and tree.tokens.max() < vocab for tree in trees)
    if sum(counts) != rows or not inside:
        return None
    begins = np.cumsum([0, *counts])
    positions = np.full(rows, -1, np.int64)
    for b, tree in enumerate(trees):
        at = begins[b] + tree.rows
        positions[at] = (0 if roots is None else roots[b]) + 1 + tree.depths
        if (positions[at] != (0 if roots is None else roots[b]) + 1 + tree.depths).any():
            return None  # a row of nodes at several depths has several tokens
    found = logits.tokens(
        np.repeat([float(one.temperature) for one in samplings], counts),
        seed,
        np.repeat(np.zeros(size, np.int64) if ids is None else ids, counts),
        np.maximum(positions, 0),
    )
    if (found[positions >= 0] < 0).any():
        return None
    paths, bonus = [], []
    for b, tree in enumerate(trees):
        path, token = _walk(tree, found[begins[b] + tree.rows])
        paths.append(path)
        bonus.append(token)
    stops = [one.stop_tokens for one in samplings]
    return Verification.from_paths(trees, paths, bonus, stop_tokens=stops, lossless=True)


def sample_in_shards(
    logits: ShardedLogits,
    samplings: Sequence[Sampling],
    seed: int,
    ids: Int64 | None,
    positions: Int64 | None,
) -> Int32 | None:
    """Sample one token from each row, or return None where the whole rows are needed."""
    rows = logits.shape[0]
    samplings = list(samplings) * (rows if len(samplings) == 1 else 1)
    if len(samplings) != rows or not all(map(is_plain, samplings)):
        return None
    zeros = np.zeros(rows, np.int64)
    found = logits.tokens(
        np.array([float(one.temperature) for one in samplings]),
        seed,
        zeros if ids is None else ids,
        zeros if positions is None else positions,
    )
    return None if (found < 0).any() else found


def _walk(tree: TokenTree, tokens: Int32) -> tuple[list[int], int]:
    """Return the nodes that a tree has of what follows each of its nodes, and what comes then."""
    first: dict[tuple[int, int], int] = {}
    for node in range(1, len(tree)):
        first.setdefault((int(tree.parents[node]), int(tree.tokens[node])), node)
    path, node = [], 0
    while (child := first.get((node, int(tokens[node])))) is not None:
        path.append(child)
        node = child
    return path, int(tokens[node])
