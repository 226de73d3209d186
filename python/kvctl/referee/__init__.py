"""Acceptance rules on random models, exactly: how much they emit, and whether they are lossless."""

from .entries import ENTRIES, Entry
from .judge import SHAPES, Verdict, judge
from .models import RandomModel

__all__ = ["ENTRIES", "SHAPES", "Entry", "RandomModel", "Verdict", "judge"]
