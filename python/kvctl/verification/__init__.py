"""Verification: which drafted tokens stay, and what comes after them.

The decision itself is the function `kvctl.verify`; here is what belongs to it: its result, exact
enumeration of the rules, traces and their replay, statistics.
"""

from .enumeration import BranchingRng, DraftedTree, Outcome, enumerate_outcomes
from .flatten import RULES
from .in_shards import ShardedLogits
from .result import Verification
from .round_rng import RoundRng
from .run import sample, verify
from .sampling import Sampling
from .stats import AcceptanceStats
from .target_probs import target_probs
from .trace import Replay, Trace

__all__ = [
    "RULES",
    "AcceptanceStats",
    "BranchingRng",
    "DraftedTree",
    "Outcome",
    "Replay",
    "RoundRng",
    "Sampling",
    "ShardedLogits",
    "Trace",
    "Verification",
    "enumerate_outcomes",
    "sample",
    "target_probs",
    "verify",
]
