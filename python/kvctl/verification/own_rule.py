"""Verifying by a rule written in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tree import TokenTree
from .enumeration import DraftedTree, Rule
from .flatten import Drawn, Int64, names_per_node
from .result import Verification
from .round_rng import RoundRng
from .sampling import Sampling
from .target_probs import Float64, target_probs


def verify_by(
    rule: Rule,
    logits: Any,
    trees: Sequence[TokenTree],
    *,
    drawn: Drawn,
    draft_probs: Any,
    samplings: Sequence[Sampling],
    seed: int,
    ids: Int64 | None,
    positions: Int64 | None,
    **target: Any,
) -> Verification:
    """Return what a rule of the caller's decides; the arguments are those of ``kvctl.verify``."""
    probs = target_probs(logits, samplings, trees=trees, check=False, **target)
    draft = None if draft_probs is None else _dense(draft_probs, probs.shape[1])
    num_rows = sum(tree.num_rows for tree in trees)
    if draft is not None and draft.shape != (num_rows, probs.shape[1]):
        raise ValueError(f"draft_probs must be {(num_rows, probs.shape[1])}, got {draft.shape}")
    samplings = list(samplings) * (len(trees) if len(samplings) == 1 else 1)
    kinds = names_per_node(trees, drawn)
    paths, bonus, node, row = [], [], 0, 0
    for b, tree in enumerate(trees):
        stops = frozenset(samplings[b].stop_tokens)
        part = probs[node : node + len(tree)]
        rows = None if draft is None else draft[row : row + tree.num_rows]
        kept, drafted = _drafted(tree, part, rows, kinds[b], stops)
        rng = RoundRng(
            seed,
            0 if ids is None else int(ids[b]),
            0 if positions is None else int(positions[b]),
        )
        try:
            last, token = rule(drafted, rng)
            if not 0 <= last < len(kept):
                raise ValueError(f"the rule accepted node {last} of {len(kept)}")
            if not 0 <= token < probs.shape[1] and not drafted.ends_at(last):
                raise ValueError(f"the rule's bonus must be a token, got {token}")
        except ValueError as error:
            raise ValueError(f"sequence {b}: {error}") from error
        paths.append(_path(tree, kept[int(last)]))
        bonus.append(int(token))
        node += len(tree)
        row += tree.num_rows
    stop_tokens = [one.stop_tokens for one in samplings]
    return Verification.from_paths(trees, paths, bonus, stop_tokens=stop_tokens)


def _drafted(
    tree: TokenTree,
    probs: Float64,
    draft: Float64 | None,
    names: Sequence[str],
    stops: frozenset[int],
) -> tuple[list[int], DraftedTree]:
    """Return a tree without what lies behind its stop tokens, and which nodes those left are."""
    kept, new = [0], {0: 0}
    for node in range(1, len(tree)):
        parent = int(tree.parents[node])
        if parent in new and (parent == 0 or int(tree.tokens[parent]) not in stops):
            new[node] = len(kept)
            kept.append(node)
    target = probs[kept]
    ends = [n for n in range(1, len(kept)) if int(tree.tokens[kept[n]]) in stops]
    for n in ends:  # what follows a stop is dropped, so any token will do
        target[n, int(tree.tokens[kept[n]])] = 1.0
    parents = [-1, *(new[int(tree.parents[node])] for node in kept[1:])]
    small = TokenTree(tree.tokens[kept], parents)
    part = None if draft is None else draft[tree.rows[kept]]
    return kept, DraftedTree(small, target, part, tuple(names[n] for n in kept), frozenset(ends))


def _path(tree: TokenTree, node: int) -> list[int]:
    path: list[int] = []
    while node > 0:
        path.append(node)
        node = int(tree.parents[node])
    return path[::-1]


def _dense(draft: Any, vocab: int) -> Float64:
    """Return draft distributions as dense rows; a pair holds sparse ones."""
    if not isinstance(draft, tuple):
        return np.asarray(draft, np.float64)
    ids, probs = (np.asarray(part) for part in draft)
    rows = np.zeros((len(ids), vocab))
    at = np.arange(len(ids))[:, None] + np.zeros_like(ids)
    rows[at[ids >= 0], ids[ids >= 0]] = probs[ids >= 0]
    return rows
