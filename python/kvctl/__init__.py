"""kvctl: verify, roll back and mask the KV cache of models on TVM and MLC-LLM."""

from __future__ import annotations

from . import _load  # first: everything below needs the libraries it loads

# isort: split
from . import draft
from ._load import cmake_dir
from .cache import PagedKVCache
from .errors import OutOfPagesError
from .function_table import FunctionTable
from .generate import Generation, generate
from .hybrid import HybridCache
from .install import install, installed, uninstall
from .mask import Mask
from .observe import AttentionMass
from .recurrent import RecurrentState
from .rope import Rope
from .runner import ModelRunner
from .tree import TokenTree
from .verify import Sampling, Verification, sample, verify

__version__ = _load.build_info()["kvctl"]

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
    "cmake_dir",
    "draft",
    "generate",
    "install",
    "installed",
    "sample",
    "uninstall",
    "verify",
]
