"""What has happened to the controller's cache, and not yet to the other workers'."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import not_
from typing import Any

from .program import Call, Kept


class Journal:
    """Calls that the other workers make before their next step.

    Every call has a number. A worker skips those that it has made, so that a message that is sent
    twice, because an interrupt came in between, does no harm.
    """

    def __init__(self) -> None:
        self.first = 0  #: the number of the first call
        self.calls: list[Call] = []
        self._kept = itertools.count()

    def add(self, name: str, *args: Any, target: int = -1) -> None:
        """Note a call."""
        self.calls.append(Call(name, args, target))

    def change(self, call: Call, function: Callable[..., None], args: Sequence[Any]) -> None:
        """Call a packed function, and note it as `call` unless it raises.

        A list takes what iterators of C give it without a step of Python's, so no interrupt comes
        between what happens and its note: the other workers would not follow.
        """
        returned = itertools.starmap(function, [args])
        self.calls += itertools.compress([call], map(not_, returned))  # they return None

    def keep(self) -> Kept:
        """Return a number under which every worker keeps a checkpoint."""
        return Kept(next(self._kept))

    def forget(self, end: int) -> None:
        """Forget the calls before number `end`: every worker has made them."""
        made = max(0, end - self.first)
        del self.calls[:made]  # in place: a finalizer may note something meanwhile
        self.first += made
