"""Drafting with heads over the target's hidden states."""

from .head_drafter import HeadDrafter
from .medusa_drafter import MedusaDrafter
from .protocols import FeatureHead, MarginalHead

__all__ = ["FeatureHead", "HeadDrafter", "MarginalHead", "MedusaDrafter"]
