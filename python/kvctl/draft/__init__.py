"""Drafting: where the tokens that a verify step checks come from."""

from .acceptance import Acceptance
from .adaptive import AdaptiveLength
from .cost import RoundCost
from .drafter import Drafter
from .lookup import LookupDrafter
from .sample import DraftSample, sample
from .sync import sync

__all__ = [
    "Acceptance",
    "AdaptiveLength",
    "DraftSample",
    "Drafter",
    "LookupDrafter",
    "RoundCost",
    "sample",
    "sync",
]
