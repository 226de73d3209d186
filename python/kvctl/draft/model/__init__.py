"""Drafting with a model, another one or the target itself: its tokens, and growing trees."""

from .model_drafter import ModelDrafter
from .self_drafter import SelfDrafter
from .vocabulary_map import VocabularyMap

__all__ = ["ModelDrafter", "SelfDrafter", "VocabularyMap"]
