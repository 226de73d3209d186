"""Drafting by the target's own guesses, again and again until they stay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from operator import index

from ...tree import TokenTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from ..round_result import RoundResult
from ..top_tokens import choices


class JacobiDrafter(Drafter):
    """Jacobi decoding: a chain of guesses, of which each round improves all (arXiv 2403.00835).

    A forward over a chain says what follows each guess. These tokens are the next round's chain:
    an iteration of Jacobi's method for the equations that greedy decoding solves one by one. The
    first guess is always right, so each round emits at least one token; a model that was trained
    for it (a consistency model) gets many right at once, another one few.

    Parameters
    ----------
    length
        Guesses in a chain.

    Raises
    ------
    ValueError
        If the length is negative.

    Notes
    -----
    Guesses behind the last row are copies of earlier tokens of the text. The chain is verified
    whole, whatever it promises: to cut it would end the iteration.

    Examples
    --------
    >>> drafter = kvctl.draft.JacobiDrafter(length=8)
    """

    wants_logits = True

    def __init__(self, *, length: int = 8) -> None:
        if index(length) < 0:
            raise ValueError(f"length must not be negative, got {length}")
        self.length = length
        self._guesses: dict[int, list[int]] = {}

    def start(self, request: Request) -> None:
        """Begin with guesses from the prompt."""
        self._guesses[request.id] = []

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft the present guesses of each text."""
        return [Draft(TokenTree.chain([one.root, *self._padded(one)])) for one in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Take what followed each guess as the next guess."""
        for result in results:
            following = choices(result.nodes, result.logits)
            # What follows the last accepted node was emitted, and what follows the next node is a
            # guess of the token after that.
            behind = range(len(result.emitted), len(result.draft.tree))
            verified = takewhile(following.__contains__, behind)
            self._guesses[result.request.id] = [following[node] for node in verified]

    def finish(self, request: Request) -> None:
        """Forget the guesses for a text."""
        self._guesses.pop(request.id, None)

    def _padded(self, request: Request) -> list[int]:
        guesses = self._guesses[request.id][: self.length]
        missing = self.length - len(guesses)
        guesses += [request.tokens[-1 - i % len(request.tokens)] for i in range(missing)]
        return guesses[: request.limit]
