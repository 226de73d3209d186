"""What became of a draft, as its drafter learns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .draft import Draft
from .request import Request


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The outcome of one round for one text.

    Attributes
    ----------
    request : Request
        The text; its tokens have the emitted ones already.
    draft : Draft
        What was proposed.
    nodes : sequence of int
        The nodes of the draft's tree that were verified, the root's first; all of them, unless the
        loop left some out (see `Draft.rates`).
    accepted : list of int
        The accepted nodes of the draft's tree, in the order of their path; the root is not one.
    emitted : list of int
        The new tokens of the text: the accepted drafts and the one that follows them. It is missing
        where the text ended with an accepted draft. Between them may be tokens that the text's
        grammar left no choice of, which the loop drafted.
    kept : list of int
        The rows of the verified tree that stayed in the target's cache, the root's first; those of
        such tokens too.
    hidden : array or None
        (len(kept), layers, width), the hidden states of those rows; None unless the drafter has
        ``hidden_layers``.
    rows : int
        How many rows the whole round forwarded, all texts together.
    seconds : float
        What the whole round took, drafting and callbacks not counted.
    finished : bool
        Whether the text has ended.
    logits : array or None
        (len(nodes), V), the target's logits after each of `nodes`, rejected ones included, on its
        device; None unless the drafter has ``wants_logits``. They may be overwritten by the next
        forward.
    """

    request: Request
    draft: Draft
    nodes: Sequence[int]
    accepted: list[int]
    emitted: list[int]
    kept: list[int]
    hidden: Any
    rows: int
    seconds: float
    finished: bool
    logits: Any = None
