"""The paged KV cache: sequences, steps, attention, and what the cache holds."""

from .install import install, installed, uninstall
from .observe import AttentionMass
from .paged_kv_cache import PagedKVCache
from .rope import Rope

__all__ = ["AttentionMass", "PagedKVCache", "Rope", "install", "installed", "uninstall"]
