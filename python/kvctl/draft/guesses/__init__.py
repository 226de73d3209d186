"""Drafting with what the target's own logits say of other tokens than the next one."""

from .jacobi import JacobiDrafter
from .lookahead import LookaheadDrafter
from .token_recycling import TokenRecyclingDrafter

__all__ = ["JacobiDrafter", "LookaheadDrafter", "TokenRecyclingDrafter"]
