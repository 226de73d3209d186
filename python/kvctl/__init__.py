"""kvctl: verify, roll back and mask the KV cache of models on TVM and MLC-LLM."""

from __future__ import annotations

from ._ffi import libraries  # first: everything below needs the libraries it loads

# isort: split
from . import draft, text
from ._ffi import streams
from ._ffi.errors import OutOfPagesError
from ._ffi.libraries import cmake_dir
from .cache.install import install, installed, uninstall
from .cache.observe import AttentionMass
from .cache.paged_kv_cache import PagedKVCache
from .cache.rope import Rope
from .checking import checking
from .engine.compiled.function_table import FunctionTable
from .engine.compiled.runner import ModelRunner
from .engine.generate import generate
from .engine.generation import Generation
from .mask import Mask
from .recurrent.hybrid_cache import HybridCache
from .recurrent.state import RecurrentState
from .tree import TokenTree
from .verification import Sampling, Verification, sample, target_probs, verify

streams.follow_torch()

__version__ = libraries.build_info()["kvctl"]

__all__ = [
    "AttentionMass",
    "FunctionTable",
    "Generation",
    "HybridCache",
    "Mask",
    "ModelRunner",
    "OutOfPagesError",
    "PagedKVCache",
    "RecurrentState",
    "Rope",
    "Sampling",
    "TokenTree",
    "Verification",
    "__version__",
    "checking",
    "cmake_dir",
    "draft",
    "generate",
    "install",
    "installed",
    "sample",
    "target_probs",
    "text",
    "uninstall",
    "verify",
]
