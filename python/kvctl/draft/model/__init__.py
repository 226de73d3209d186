"""Drafting with a model, another one or the target itself: its tokens, and growing trees."""

from .model_drafter import ModelDrafter
from .self_drafter import SelfDrafter

__all__ = ["ModelDrafter", "SelfDrafter"]
