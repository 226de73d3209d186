"""Requests to libkvctl: what verifying, sampling, enumerating and replaying have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ffi import functions as ffi
from .._ffi.integers import to_int32
from ..tree import TokenTree, encode_trees
from .flatten import Drawn, Int64, drawn_kinds, signed, tensor
from .sampling import Sampling, ragged


def set_trees(request: ffi.VerifyRequest, trees: Sequence[TokenTree], drawn: Drawn) -> Int64:
    """Set the trees and how they were drawn.

    Returns
    -------
    numpy.ndarray
        (2, B + 1) int64, where the nodes and the rows of each tree begin.

    Raises
    ------
    ValueError, TypeError
        As `drawn_kinds`.
    """
    code: Any
    kinds: Any
    code, begins = encode_trees(trees)
    request.trees = code
    kinds = drawn_kinds(trees, drawn)
    if isinstance(kinds, int):
        request.drawn = kinds
    else:
        request.drawn_per_node = kinds
    return begins


def set_target(
    request: ffi.VerifyRequest,
    logits: Any,
    samplings: Sequence[Sampling],
    *,
    bitmask: Any = None,
    probabilities: bool = False,
) -> None:
    """Set the target's rows and how they are sampled from."""
    request.logits = tensor(logits, "logits")
    request.sampling = [one.params() for one in samplings]
    if bitmask is not None:
        request.bitmask = tensor(bitmask, "bitmask")
    if probabilities:
        request.probabilities = True


def set_draft(request: ffi.VerifyRequest, draft: Any, *, per_node: bool) -> None:
    """Set the draft distributions: dense rows, or a pair (ids, probs) of sparse ones.

    Raises
    ------
    ValueError
        If a tuple is no pair.
    TypeError
        If the ids are no integers.
    """
    if isinstance(draft, tuple):
        if len(draft) != 2:
            raise ValueError(f"sparse draft_probs are a pair (ids, probs), got {len(draft)} arrays")
        ids, draft = draft
        request.draft_ids = _ids(ids)
    request.draft_probs = tensor(draft, "draft_probs")
    if per_node:
        request.draft_per_node = True


def set_streams(
    request: ffi.VerifyRequest, seed: int, request_ids: Int64 | None, positions: Int64 | None
) -> None:
    """Set what names the random numbers."""
    ids: Any = request_ids
    roots: Any = positions
    request.seed = signed(seed)
    if ids is not None:
        request.request_ids = ids
    if roots is not None:
        request.root_positions = roots


def set_history(
    request: ffi.VerifyRequest, history: Sequence[Sequence[int]] | None, size: int
) -> None:
    """Set the tokens before each root.

    Raises
    ------
    ValueError
        If there is not one entry for each sequence.
    """
    if history is None:
        return
    if len(history) != size:
        raise ValueError(f"history needs one entry for each of {size} sequences")
    begins: Any
    tokens: Any
    begins, tokens = ragged(history, "history")
    request.history_begins, request.history = begins, tokens


def _ids(ids: Any) -> Any:
    """Return the tokens of sparse rows as libkvctl reads them."""
    if hasattr(ids, "__dlpack__") and not isinstance(ids, np.ndarray):
        return tensor(ids, "the ids of draft_probs")
    return tensor(to_int32(ids, "the ids of draft_probs", ndim=2), "the ids of draft_probs")
