"""Drafting: where the tokens that a verify step checks come from."""

from .acceptance import Acceptance
from .budget import Budget
from .cost import RoundCost
from .draft import Draft
from .drafter import Drafter
from .guesses import JacobiDrafter, LookaheadDrafter, TokenRecyclingDrafter
from .head import HeadDrafter, MedusaDrafter
from .lookup import LookupDrafter
from .mixed import MixedDrafter
from .model import (
    DraftVocabulary,
    ModelDrafter,
    SelfDrafter,
    StringDrafter,
    StringMap,
    VocabularyMap,
)
from .registry import DRAFTERS, make_drafter, register_drafter
from .request import Request
from .round_result import RoundResult
from .sample import DraftSample, sample
from .suffix import SuffixDrafter, SuffixStore
from .sync import sync
from .told import ScriptedDrafter, SyntheticDrafter

__all__ = [
    "DRAFTERS",
    "Acceptance",
    "Budget",
    "Draft",
    "DraftSample",
    "DraftVocabulary",
    "Drafter",
    "HeadDrafter",
    "JacobiDrafter",
    "LookaheadDrafter",
    "LookupDrafter",
    "MedusaDrafter",
    "MixedDrafter",
    "ModelDrafter",
    "Request",
    "RoundCost",
    "RoundResult",
    "ScriptedDrafter",
    "SelfDrafter",
    "StringDrafter",
    "StringMap",
    "SuffixDrafter",
    "SuffixStore",
    "SyntheticDrafter",
    "TokenRecyclingDrafter",
    "VocabularyMap",
    "make_drafter",
    "register_drafter",
    "sample",
    "sync",
]
