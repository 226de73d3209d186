"""Drafting: where the tokens that a verify step checks come from."""

from .acceptance import Acceptance
from .adaptive import AdaptiveLength
from .cost import RoundCost
from .drafter import Drafter
from .lookup import LookupDrafter

__all__ = ["Acceptance", "AdaptiveLength", "Drafter", "LookupDrafter", "RoundCost"]
