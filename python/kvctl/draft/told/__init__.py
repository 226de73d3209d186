"""Drafters that are told the answer, or an acceptance: for studies and tests."""

from .scripted import ScriptedDrafter
from .synthetic import SyntheticDrafter

__all__ = ["ScriptedDrafter", "SyntheticDrafter"]
