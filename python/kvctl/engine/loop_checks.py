"""What the decoding loop refuses: prompts that have no room, and drafts that break the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..draft import Draft, Request
from ..tree import TokenTree
from .generation import FinishReason
from .rows import num_rows

if TYPE_CHECKING:
    from .protocol import Runner


def slides(runner: Runner) -> bool:
    """Return whether the model's sequences evict old tokens, so that they have no end."""
    return runner.sliding_window_size is not None


def check_prompt(runner: Runner, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Refuse a prompt without tokens or with tokens that do not exist.

    Raises
    ------
    ValueError
        If the prompt is empty, or has a token outside the vocabulary.
    """
    if len(prompt) == 0:
        raise ValueError("the prompt must have at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    lowest, highest = min(prompt), max(prompt)
    if lowest < 0 or highest >= runner.vocab_size:
        token = lowest if lowest < 0 else highest
        raise ValueError(
            f"the prompt has token {token}; the vocabulary is 0 to {runner.vocab_size - 1}"
        )


def room_for(
    runner: Runner, prompt: Sequence[int], max_new_tokens: int
) -> tuple[int, FinishReason]:
    """Return how many tokens a text may have that has the cache's free pages for itself.

    Also return which limit that is.

    Raises
    ------
    ValueError
        If the prompt does not fit.
    """
    limits: list[tuple[int, FinishReason]] = [(max_new_tokens, "length")]
    if not slides(runner):
        context = runner.context_window_size
        sizes = {} if context is None else {"context": context}
        sizes["cache"] = runner.cache.num_available_tokens
        for reason in ("context", "cache"):
            if reason not in sizes:
                continue
            if len(prompt) > sizes[reason]:
                why = f": the model's context window is {context}" if reason == "context" else ""
                raise ValueError(
                    f"the prompt has {len(prompt)} tokens; there is room for {sizes[reason]} in "
                    f"the cache{why}"
                )
            # The last token of the text is never forwarded, so it needs no room.
            limits.append((sizes[reason] - len(prompt) + 1, reason))
    return min(limits, key=lambda limit: limit[0])


def check_drafts(
    drafter: Any,
    drafts: Any,
    requests: Sequence[Request],
    vocab_size: int,
    *,
    cut: Callable[[Draft], bool],
) -> None:
    """Refuse what a drafter proposed, if it is no drafts that the loop may verify.

    `cut` says whether the loop may verify a part of a draft alone: then it may be larger than its
    limit.

    Raises
    ------
    TypeError
        If it is no sequence of `Draft`, or a tree is no TokenTree.
    ValueError
        If there is not one draft for each request; if a root is not the last token of its text, or
        a tree has more nodes than allowed, a token outside the vocabulary, or rows without a node;
        if rates or distributions are not one for each node or row. The message names the drafter's
        class.
    """
    name = f"{type(drafter).__name__}.propose"
    if not isinstance(drafts, Sequence):
        raise TypeError(f"{name} must return a list of drafts, got {type(drafts).__name__}")
    if len(drafts) != len(requests):
        raise ValueError(f"{name} returned {len(drafts)} drafts for {len(requests)} requests")
    for draft, request in zip(drafts, requests, strict=True):
        _check_draft(name, draft, request, vocab_size, cut)


def _check_draft(
    name: str, draft: Any, request: Request, vocab_size: int, cut: Callable[[Draft], bool]
) -> None:
    """Refuse a draft that the loop may not verify; see `check_drafts`."""
    if not isinstance(draft, Draft):
        raise TypeError(f"{name} must return kvctl.draft.Draft, got {type(draft).__name__}")
    tree = draft.tree
    if not isinstance(tree, TokenTree):
        raise TypeError(f"{name} must draft a kvctl.TokenTree, got {type(tree).__name__}")
    tokens = tree.tokens.tolist()
    if tokens[0] != request.root:
        raise ValueError(
            f"{name} returned a tree with root {tokens[0]}; the root is the last token of the "
            f"text, {request.root}"
        )
    if draft.rates is not None and len(draft.rates) != len(tokens):
        raise ValueError(
            f"{name} returned {len(draft.rates)} rates for {len(tokens)} nodes, the root among them"
        )
    for what, size in (("probs", tree.num_rows), ("probs_per_node", len(tokens))):
        probs = getattr(draft, what)
        if probs is not None and num_rows(probs) != size:
            raise ValueError(
                f"{name} returned {num_rows(probs)} rows of {what} for a tree that has {size}"
            )
    if len(tokens) - 1 > request.limit and not cut(draft):
        raise ValueError(
            f"{name} returned {len(tokens) - 1} nodes behind the root; its limit was "
            f"{request.limit}"
        )
    lowest, highest = min(tokens), max(tokens)
    if lowest < 0 or highest >= vocab_size:
        token = lowest if lowest < 0 else highest
        raise ValueError(f"{name} drafted token {token}; the vocabulary is 0 to {vocab_size - 1}")
    if tree.num_rows > len(set(tree.rows.tolist())):
        raise ValueError(f"{name} returned a tree with {tree.num_rows} rows, some without a node")
