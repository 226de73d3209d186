"""Verification: which drafted tokens stay, and what comes after them.

``kvctl.verify`` is the function and the namespace at once: ``kvctl.verify(...)`` decides a batch of
trees, and what belongs to it hangs on it, as in ``kvctl.verify.enumerate(...)``.
"""

from __future__ import annotations

from .enumeration import BranchingRng, DraftedTree, Outcome, enumerate_outcomes
from .flatten import RULES
from .result import Verification
from .run import sample
from .run import verify as _verify
from .sampling import Sampling
from .stats import AcceptanceStats
from .trace import Replay, Trace

__all__ = [
    "RULES",
    "AcceptanceStats",
    "BranchingRng",
    "DraftedTree",
    "Outcome",
    "Replay",
    "Sampling",
    "Trace",
    "Verification",
    "enumerate_outcomes",
    "sample",
    "verify",
]


class _Verify:
    """The function `verify`, with what belongs to it as attributes."""

    __call__ = staticmethod(_verify)
    __doc__ = _verify.__doc__
    __name__ = "verify"

    enumerate = staticmethod(enumerate_outcomes)
    AcceptanceStats = AcceptanceStats
    BranchingRng = BranchingRng
    DraftedTree = DraftedTree
    Outcome = Outcome
    Replay = Replay
    RULES = RULES
    Trace = Trace

    def __repr__(self) -> str:
        return "<function kvctl.verify>"


verify = _Verify()
