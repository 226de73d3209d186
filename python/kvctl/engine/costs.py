"""What rounds cost on each runner: kept while it lives, and remembered for the next process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..draft import RoundCost
from ..draft.identity import identity_of
from . import cost_file

if TYPE_CHECKING:
    from .protocol import Runner

# Larger rounds are taken to cost in proportion.
_MAX_ROWS = 512
# Rounds of drafts that must have been timed since the file was written last.
_WORTH_KEEPING = 16


class _Known:
    """The costs of a runner, and when they were written to the file."""

    def __init__(self, cost: RoundCost, key: str | None = None) -> None:
        self.cost, self.key = cost, key
        self.speculative_rounds = 0

    @classmethod
    def remembered(cls, runner: Runner) -> _Known:
        """Return what an earlier process remembered of a runner that has an identity."""
        identity = identity_of(runner)
        known = cls(new_cost(), None if identity is None else cost_file.key_of(identity))
        if known.key is not None:
            known.cost.recall(cost_file.recall(known.key))
        return known


_known: WeakKeyDictionary[Runner, _Known] = WeakKeyDictionary()


def _of(runner: Runner) -> _Known:
    try:
        known = _known.get(runner)
        if known is None:
            _known[runner] = known = _Known.remembered(runner)
    except TypeError:  # a runner that has no hash, or takes no weak reference
        known = _Known.remembered(runner)
    return known


def cost_of(runner: Runner) -> RoundCost:
    """Return what is known of the cost of a runner's rounds; every generation adds to it.

    What an earlier process remembered of a runner that has an ``identity`` is where it begins.
    """
    return _of(runner).cost


def new_cost() -> RoundCost:
    """Return the cost of a runner's rounds of which nothing is known yet."""
    return RoundCost(max_rows=_MAX_ROWS)


@contextlib.contextmanager
def with_cost(runner: Runner, cost: RoundCost) -> Iterator[None]:
    """Let generations use a cost of their own, and add to it alone.

    What is known of the runner, and the file, stay as they are. Nothing is known of a runner that
    has no hash or takes no weak reference, here either.
    """
    try:
        outer = _known.get(runner)
        _known[runner] = _Known(cost)
    except TypeError:
        yield
        return
    try:
        yield
    finally:
        if outer is None:
            _known.pop(runner, None)
        else:
            _known[runner] = outer


def forget_costs(runner: Runner) -> None:
    """Forget what is known of the cost of a runner's rounds, as in a new process."""
    with contextlib.suppress(TypeError):
        _known.pop(runner, None)


def keep_costs(runner: Runner, speculative_rounds: int) -> None:
    """Write what is known to the user's cache folder, if enough was learnt since the last time.

    Parameters
    ----------
    runner
        Whose costs.
    speculative_rounds
        How many rounds of more than plain steps the generation that ends had.
    """
    known = _of(runner)
    known.speculative_rounds += speculative_rounds
    if known.key is None or known.speculative_rounds < _WORTH_KEEPING:
        return
    points = known.cost.points
    if points:
        known.speculative_rounds = 0
        cost_file.remember(known.key, points)
