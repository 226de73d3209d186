"""Drafting with a second model: its sequences, and the trees that it grows."""

from .drafter import ModelDrafter

__all__ = ["ModelDrafter"]
