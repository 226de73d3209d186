"""Drafting from a store of texts that all requests share."""

from .drafter import SuffixDrafter
from .store import Continuations, SuffixStore

__all__ = ["Continuations", "SuffixDrafter", "SuffixStore"]
