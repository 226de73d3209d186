"""The protocol between a drafter and the decoding loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..tree import TokenTree


class Drafter(Protocol):
    """Guesses how one text goes on; `kvctl.generate` verifies its guesses.

    The calls come in this order: `start` once per text, then `propose` and `observe` in turns. A
    drafter that also has ``observe_prefill(rows: int, seconds: float)`` gets it called before
    `start`: how long the prompt's forward took, and of how many rows it was.
    """

    @property
    def drawn(self) -> str:
        """How the tokens are drawn, as `kvctl.verify` wants to know it."""
        ...

    def start(self, tokens: Sequence[int], measure: Callable[[int], float]) -> None:
        """Begin a text.

        Parameters
        ----------
        tokens
            The prompt and the first emitted token.
        measure
            Runs a throwaway round of that many rows (1: a plain step) behind the present context
            and returns its seconds; for drafters that care about costs. The time counts.
        """
        ...

    def propose(self, limit: int) -> TokenTree:
        """Draft for the next round.

        Parameters
        ----------
        limit
            The most nodes and the greatest depth allowed, the root not counted; it may be 0.

        Returns
        -------
        TokenTree
            Its root is the last token of the text. The root alone asks for a plain step. A tree
            with another root, more nodes than the limit or tokens outside the vocabulary is
            refused, and the generation raises.
        """
        ...

    def observe(self, emitted: Sequence[int], seconds: float) -> None:
        """Learn from the outcome of the round.

        Parameters
        ----------
        emitted
            The new tokens of the text: the accepted drafts and the one that follows them.
        seconds
            What the round took, draft and callback not included.
        """
        ...
