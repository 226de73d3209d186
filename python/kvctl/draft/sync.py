"""Keeping a draft model's cache in step with what verification kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..tree import TokenTree
from ..verification.result import Verification


class DraftCache(Protocol):
    """What `sync` needs of a cache; ``kvctl.PagedKVCache`` has it."""

    def pending_length(self, seq_id: int) -> int:
        """Return how many nodes of the sequence are pending."""
        ...

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """Commit the kept pending nodes of each sequence and drop its others."""
        ...

    def popn(self, seq_id: int, n: int) -> None:
        """Take the last n committed tokens of a sequence back."""
        ...


def sync(
    cache: DraftCache,
    result: Verification,
    *,
    seq_ids: Sequence[int],
    trees: Sequence[TokenTree],
    forwarded: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Keep of a draft cache what verification kept, and return what it lacks.

    The draft model forwarded some nodes of each tree while drafting it. Those on the accepted path
    stay, the others go. If the cache holds the forwarded nodes as pending, the path is committed;
    if it committed them as it went (a chain, decoded token by token), the tail is popped.

    Parameters
    ----------
    cache
        The draft model's cache.
    result
        What ``kvctl.verify`` returned for `trees`.
    seq_ids
        The draft cache's sequence of each tree.
    trees
        The trees that were verified.
    forwarded
        For each tree, the nodes that the draft model forwarded, in that order, the root among
        them; node forwarded[b][i] is pending row i of the draft cache. By default all nodes but
        the last: what drafting a chain token by token forwards.

    Returns
    -------
    list of list of int
        For each sequence the tokens that its draft cache lacks, to be forwarded before or as the
        next root: accepted tokens that the draft model never forwarded, then the bonus. (After
        full acceptance of a chain these are two tokens.) A finished sequence has no bonus.

    Raises
    ------
    ValueError
        If the arguments do not fit each other; the cache is unchanged.
    """
    size = len(result)
    if len(seq_ids) != size or len(trees) != size:
        raise ValueError(
            f"the result has {size} sequences, but there are {len(seq_ids)} seq_ids and "
            f"{len(trees)} trees"
        )
    if len(set(seq_ids)) != size:
        raise ValueError(f"each sequence may be named once, got {list(seq_ids)}")
    if forwarded is None:
        forwarded = [range(max(1, len(tree) - 1)) for tree in trees]
    elif len(forwarded) != size:
        raise ValueError(f"forwarded needs one entry for each of {size} trees")

    lacking: list[list[int]] = []
    commits: list[tuple[int, list[int]]] = []
    pops: list[tuple[int, int]] = []
    for b, (seq_id, tree, nodes) in enumerate(zip(seq_ids, trees, forwarded, strict=True)):
        path = [0, *result.accepted_nodes[b]]
        index = {int(node): i for i, node in enumerate(nodes)}
        if not all(0 <= node < len(tree) for node in index):
            raise ValueError(f"forwarded[{b}] names a node that its tree does not have")
        held = [node for node in path if node in index]
        if held != path[: len(held)]:
            raise ValueError(
                f"forwarded[{b}] holds node {held[-1]} of the accepted path but not its ancestors"
            )
        pending = cache.pending_length(seq_id)
        kept = [index[node] for node in held]
        if pending:
            if kept and max(kept) >= pending:
                raise ValueError(
                    f"forwarded[{b}] has {len(index)} nodes, but sequence {seq_id} of the draft "
                    f"cache has {pending} pending"
                )
            commits.append((seq_id, kept))
        else:
            if kept != list(range(len(kept))):
                raise ValueError(
                    f"sequence {seq_id} of the draft cache holds no pending nodes, so only a "
                    "chain can be taken back"
                )
            pops.append((seq_id, len(index) - len(kept)))
        tokens = [int(tree.tokens[node]) for node in path[len(held) :]]
        if not result.finished[b]:
            tokens.append(int(result.bonus[b]))
        lacking.append(tokens)

    if commits:
        cache.commit([seq_id for seq_id, _ in commits], [kept for _, kept in commits])
    for seq_id, n in pops:
        if n > 0:
            cache.popn(seq_id, n)
    return lacking
