"""Drafting with a model, another one or the target itself: its tokens, and growing trees."""

from .draft_vocabulary import DraftVocabulary
from .model_drafter import ModelDrafter
from .self_drafter import SelfDrafter
from .string_drafter import StringDrafter
from .string_map import StringMap
from .vocabulary_map import VocabularyMap

__all__ = [
    "DraftVocabulary",
    "ModelDrafter",
    "SelfDrafter",
    "StringDrafter",
    "StringMap",
    "VocabularyMap",
]
