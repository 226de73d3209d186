"""Drafting where the answer is known: the most that any drafter could bring."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np

from ...tree import TokenTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from .answers import Answers


class ScriptedDrafter(Drafter):
    """Drafts the continuation that it was told, for upper bounds and tests of the loop.

    Where a text has left its script, nothing is drafted.

    Parameters
    ----------
    answers
        The new tokens of each prompt, in the order of the prompts; plain generation returns them.
    length
        Draft always this many tokens ahead; by default as many as pay, at most 64.

    Raises
    ------
    ValueError
        If `length` is negative.

    Examples
    --------
    >>> drafter = kvctl.draft.ScriptedDrafter([[5, 6, 7, 8]])
    """

    def __init__(self, answers: Sequence[Sequence[int]], *, length: int | None = None) -> None:
        if length is not None and index(length) < 0:
            raise ValueError(f"length must not be negative, got {length}")
        self.length = length
        self._answers = Answers(answers)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft what each script says."""
        return [self._propose(request) for request in requests]

    def _propose(self, request: Request) -> Draft:
        length = min(request.limit, 64 if self.length is None else self.length)
        ahead = self._answers.ahead(request, length)
        tree = TokenTree.chain([request.root, *ahead])
        return Draft(tree, rates=np.ones(len(tree)).tolist() if self.length is None else None)
