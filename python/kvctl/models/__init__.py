"""Models that kvctl can build: graph, weights, tokenizer, and the driver of TVM's compiler.

This package needs TVM's compiler; the rest of kvctl does not.
"""

from . import _compiler  # noqa: F401  (first: its error names what is missing)
from .architectures.layers import ParamSpec
from .architectures.llama import export
from .build.compile import compile_model
from .checkpoints.config import LlamaConfig
from .checkpoints.weights import Checkpoint, RandomCheckpoint, open_checkpoint

__all__ = [
    "Checkpoint",
    "LlamaConfig",
    "ParamSpec",
    "RandomCheckpoint",
    "compile_model",
    "export",
    "open_checkpoint",
]
