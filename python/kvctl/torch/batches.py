"""The arguments of a runner's forwards: checked, and cut into the steps of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .._ffi.errors import OutOfPagesError
from .._ffi.integers import to_int64
from ..cache import PagedKVCache
from ..mask import Mask
from ..tree import TokenTree, as_trees

if TYPE_CHECKING:
    from ..cache.step_arguments import MaskLike

Int64Array = npt.NDArray[np.int64]


@dataclass
class Request:
    """What one sequence appends in a step.

    Attributes
    ----------
    seq_id
        The sequence.
    tokens
        (n,) its new tokens.
    mask
        The mask of the new tokens; None is causal.
    positions
        (n,) their rotary positions; None where they follow the mask.
    logits
        The new tokens whose logits are asked for.
    """

    seq_id: int
    tokens: Int64Array
    mask: MaskLike | None = None
    positions: Int64Array | None = None
    logits: Literal["all", "last", "none"] = "all"

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, begin: int, end: int) -> Request:
        """Return the request of new tokens [begin, end)."""
        positions = None if self.positions is None else self.positions[begin:end]
        return replace(self, tokens=self.tokens[begin:end], positions=positions)


def token_lists(values: Sequence[npt.ArrayLike], name: str) -> list[Int64Array]:
    """Return lists of integers, one for each sequence.

    Raises
    ------
    TypeError, ValueError
        If they are not integers, or one list where a list for each sequence belongs.
    """
    if any(isinstance(one, Integral) for one in values):
        flat = [one.item() if isinstance(one, np.integer) else one for one in values]
        raise ValueError(f"{name} must be a list for each sequence: [{flat}], say, and not {flat}")
    return [to_int64(one, name) for one in values]


def mask_list(
    mask: MaskLike | Sequence[MaskLike | None] | None, count: int
) -> list[MaskLike | None]:
    """Return a mask, or none, for each of `count` sequences.

    Raises
    ------
    TypeError
        If something is no mask.
    ValueError
        If there are more or fewer of them.
    """
    if mask is None:
        return [None] * count
    masks: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask]
    for one in masks:
        if one is not None and not isinstance(one, Mask | TokenTree):
            raise TypeError(
                f"a mask must be a kvctl.Mask or a kvctl.TokenTree, got {type(one).__name__}"
            )
    if len(masks) != count:
        raise ValueError(f"{count} sequences were named and {len(masks)} masks given")
    return masks


def check_batch(seq_ids: Sequence[int], count: int, what: str) -> list[int]:
    """Return the ids of a batch.

    Raises
    ------
    ValueError
        If it is empty, one is named twice, or there are more or fewer than `count`.
    """
    ids: list[int] = to_int64(seq_ids, "seq_ids").tolist()
    if len(ids) != count:
        raise ValueError(f"{len(ids)} sequences were named and {count} {what} given")
    if not ids:
        raise ValueError("no sequences were named")
    if len(set(ids)) != len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ValueError(f"sequence {twice} is named twice in one batch")
    return ids


def check_tokens(request: Request, vocab_size: int) -> None:
    """Raise ValueError if there are no tokens, or one is outside the vocabulary."""
    tokens = request.tokens
    if len(tokens) == 0:
        raise ValueError(f"there are no tokens for sequence {request.seq_id}")
    if len(tokens) == 1:
        outside = not 0 <= tokens[0] < vocab_size
    else:
        outside = tokens.min() < 0 or tokens.max() >= vocab_size
    if outside:
        token = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise ValueError(
            f"token {token} for sequence {request.seq_id} is not in the model's vocabulary "
            f"[0, {vocab_size})"
        )


def check_context(cache: PagedKVCache, seq_id: int, length: int, context: int | None) -> None:
    """Raise ValueError if `length` more tokens go beyond the context window."""
    if context is None or length <= context - (present := cache.sequence_length(seq_id)):
        return
    raise ValueError(
        f"{length} new tokens for sequence {seq_id}, which holds {present}, go beyond the model's "
        f"context window of {context} tokens"
    )


def check_nothing_pending(cache: PagedKVCache, seq_id: int) -> None:
    """Raise ValueError if a sequence has pending nodes."""
    if (n := cache.pending_length(seq_id)) > 0:
        raise ValueError(
            f"sequence {seq_id} has {n} pending nodes; commit or abort them before another tree, "
            "or grow their tree with forward and Mask.tree, whose parents are pending nodes"
        )


def tree_rows(seq_id: int, tree: TokenTree) -> Int64Array:
    """Return the token of each row of a tree.

    Raises
    ------
    ValueError
        If a row belongs to no node.
    """
    tokens = np.full(tree.num_rows, -1, np.int64)
    tokens[tree.rows] = tree.tokens
    if tokens.min() == -1 and tree.tokens.min() >= 0:
        row = int(np.flatnonzero(tokens == -1)[0])
        raise ValueError(f"row {row} of the tree of sequence {seq_id} belongs to no node")
    return tokens


def prefill_requests(
    cache: PagedKVCache,
    seq_ids: Sequence[int],
    tokens: Sequence[npt.ArrayLike],
    *,
    vocab_size: int,
    context: int | None,
) -> list[Request]:
    """Return a request for each prompt: the logits behind its last token are wanted.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a prompt does not fit the model or the cache.
    """
    prompts = token_lists(tokens, "tokens")
    ids = check_batch(seq_ids, len(prompts), "prompts")
    requests = [Request(*each, logits="last") for each in zip(ids, prompts, strict=True)]
    for request in requests:
        check_tokens(request, vocab_size)
        check_context(cache, request.seq_id, len(request), context)
    return requests


def tree_requests(
    cache: PagedKVCache,
    seq_ids: Sequence[int],
    trees: TokenTree | Sequence[TokenTree],
    *,
    vocab_size: int,
    context: int | None,
) -> list[Request]:
    """Return a request for each tree: the logits of all its rows are wanted.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a tree does not fit the model or the cache, or its sequence has pending nodes.
    """
    trees = as_trees(trees)
    ids = check_batch(seq_ids, len(trees), "trees")
    requests = []
    for seq_id, tree in zip(ids, trees, strict=True):
        check_nothing_pending(cache, seq_id)
        check_context(cache, seq_id, int(tree.depths.max()) + 1, context)
        requests.append(Request(seq_id, tree_rows(seq_id, tree), tree))
        check_tokens(requests[-1], vocab_size)
    return requests


def masked_requests(
    cache: PagedKVCache,
    seq_ids: Sequence[int],
    tokens: Sequence[npt.ArrayLike],
    mask: MaskLike | Sequence[MaskLike | None] | None,
    positions: Sequence[npt.ArrayLike] | None,
    *,
    vocab_size: int,
) -> list[Request]:
    """Return a request for each list of tokens, under its mask and at its positions.

    Raises
    ------
    KeyError, TypeError, ValueError
        If something does not fit the model, or a tree's sequence has pending nodes.
    """
    lists = token_lists(tokens, "tokens")
    ids = check_batch(seq_ids, len(lists), "lists of tokens")
    masks = mask_list(mask, len(ids))
    places: list[Any] = [None] * len(ids)
    if positions is not None:
        places = token_lists(positions, "positions")
        lengths, wanted = [len(one) for one in places], [len(one) for one in lists]
        if lengths != wanted:
            raise ValueError(f"the positions have lengths {lengths}, the tokens {wanted}")
    requests = list(map(Request, ids, lists, masks, places))
    for request in requests:
        if isinstance(request.mask, TokenTree):
            check_nothing_pending(cache, request.seq_id)
        check_tokens(request, vocab_size)
    return requests


def check_free_pages(cache: PagedKVCache, requests: Sequence[Request]) -> None:
    """Raise OutOfPagesError if the new tokens do not fit into the free pages."""
    size, needed = cache.page_size, 0
    for request in requests:
        present = cache.sequence_length(request.seq_id)
        needed += -(-(present + len(request)) // size) + -present // size
    if needed > cache.num_available_pages:
        raise OutOfPagesError(
            f"{sum(map(len, requests))} new tokens need {needed} more pages of {size} tokens, and "
            f"{cache.num_available_pages} of the cache's {cache.num_pages} are free"
        )


def cut_into_steps(
    requests: Sequence[Request], chunk: int, *, one_sequence: bool = False
) -> list[list[Request]]:
    """Cut requests into steps of at most `chunk` new tokens; one under a mask stays in one piece.

    Raises
    ------
    ValueError
        If a request under a mask has more than `chunk` tokens.
    """
    steps: list[list[Request]] = []
    room = 0
    for request in requests:
        if request.mask is not None and len(request) > chunk:
            raise ValueError(
                f"sequence {request.seq_id} has {len(request)} new tokens, and one forward under a "
                f"mask takes at most the prefill chunk of {chunk}"
            )
        if one_sequence:
            room = 0
        begin = 0
        while begin < len(request):
            if room == 0 or (request.mask is not None and len(request) > room):
                steps.append([])
                room = chunk
            end = min(len(request), begin + room)
            steps[-1].append(request if end - begin == len(request) else request.part(begin, end))
            room -= end - begin
            begin = end
    return steps
