"""What a drafter's texts gained, for its next texts to bet."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .drafter import Drafter

_MOST = 2.0


class Savings:
    """Plain steps that finished texts gained and did not lose again, up to a few.

    A text that begins takes its part of them into its purse (`kvctl.draft.Budget`), and gives back
    what is left when it ends. A drafter that paid so far can thus afford a few wrong bets in a
    short text, and all of its texts together still lose no more than their own credits.

    Parameters
    ----------
    most
        Never keep more plain steps than this: so much more may one text lose.
    """

    def __init__(self, most: float = _MOST) -> None:
        self._most = most
        self._amount = 0.0

    def take(self, texts: int) -> float:
        """Return the part of each of so many texts that begin."""
        part = self._amount / texts
        self._amount = 0.0
        return part

    def give_back(self, steps: float) -> None:
        """Take what an ended text has left; it is negative where some of its own was lost."""
        self._amount = min(max(self._amount + steps, 0.0), self._most)


_of: WeakKeyDictionary[Drafter, Savings] = WeakKeyDictionary()


def savings_of(drafter: Drafter | None) -> Savings:
    """Return the savings of a drafter, which every generation with it changes."""
    try:
        known = _of.get(drafter)  # type: ignore[arg-type]
        if known is None:
            _of[drafter] = known = Savings()  # type: ignore[index]
    except TypeError:  # None, or a drafter that has no hash or takes no weak reference
        known = Savings()
    return known
