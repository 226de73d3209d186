"""Which tree to draft: the nodes that promise the most tokens under a measured cost."""

from .best_first import best_first
from .optimal_static import StaticTree, optimal_static
from .rated_tree import RatedTree
from .rerank import rerank

__all__ = ["RatedTree", "StaticTree", "best_first", "optimal_static", "rerank"]
