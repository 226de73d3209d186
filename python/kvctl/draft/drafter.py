"""The protocol between a drafter and the decoding loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .budget import Budget
from .draft import Draft
from .request import Request
from .round_result import RoundResult

if TYPE_CHECKING:
    from .mixed import MixedDrafter


class Drafter(Protocol):
    """Guesses how texts go on; `kvctl.generate` verifies its guesses.

    The calls come in this order: `start` once per text, then `propose` and `observe` in turns for
    all texts that run, then `finish`. A text that has to wait for room finishes too, perhaps after
    it was drafted for, and starts anew with the same tokens when it comes back.

    A drafter keeps what it knows of a text under its ``request.id``, and owns any cache it needs.
    Subclasses inherit methods that do nothing; only `propose` must be written.

    Attributes
    ----------
    hidden_layers : tuple of int
        The target's layers whose hidden states it wants with `start` and `observe`; none by
        default.
    wants_logits : bool
        Whether it wants the target's logits with `observe`; not by default.
    costs_time : bool
        Whether drafting takes the time of a model; not by default. Several drafters together ask
        such a one last, with a budget that says what the others promise (`Budget.promised`).
    identity : str or None
        Names the files that it drafts with, and their versions; None by default. A benchmark does
        not go on with a drafter of another identity.
    """

    hidden_layers: tuple[int, ...] = ()
    wants_logits: bool = False
    costs_time: bool = False
    identity: str | None = None

    def start(self, request: Request) -> None:
        """Begin a text: its tokens are the prompt and what was emitted so far, at least a token."""

    def propose(self, requests: Sequence[Request], budget: Budget) -> Sequence[Draft]:
        """Draft for the next round.

        Parameters
        ----------
        requests
            The texts of the round.
        budget
            What drafts are worth: a drafter that draws at random asks it, before it draws, how
            many nodes to draw. It need not ask for drafts that it gives rates of.

        Returns
        -------
        sequence of Draft
            One for each request, in their order. One with another root than the last token of the
            text, more nodes than the limit or tokens outside the vocabulary is refused, and the
            generation raises.
        """
        ...

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Learn from the outcome of a round: a result for each text that found room in it."""

    def finish(self, request: Request) -> None:
        """Forget a text: it has ended or must wait, or the generation is being given up.

        Where a keyboard interrupt comes in between, it may be a text whose `start` did not end, or
        that was finished already.
        """

    def __or__(self, other: Drafter) -> MixedDrafter:
        """Return the drafter of both: one tree from what each of them proposes."""
        from .mixed import MixedDrafter  # here, because few need it

        return MixedDrafter(self, other)
