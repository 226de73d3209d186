"""Models that kvctl can build: graph, weights, tokenizer, and the driver of TVM's compiler.

Needs TVM's compiler; nothing else of kvctl's does.
"""

from . import _compiler  # noqa: F401  (first: the others cannot say what they lack)
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
