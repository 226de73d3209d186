"""Recurrent states that roll back, alone and beside a paged KV cache."""

from .hybrid_cache import HybridCache
from .state import RecurrentState

__all__ = ["HybridCache", "RecurrentState"]
