"""One tree from several drafters."""

from .drafter import MixedDrafter

__all__ = ["MixedDrafter"]
