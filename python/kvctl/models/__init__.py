"""Models that kvctl can build: graph, weights, tokenizer, and the driver of TVM's compiler.

This package needs TVM's compiler; the rest of kvctl does not.
"""

from . import _compiler  # noqa: F401  (first: its error names what is missing)
from .build.compile import compile_model
from .checkpoints.config import DecoderConfig, LlamaConfig
from .checkpoints.rope import RopeScaling
from .checkpoints.weights import Checkpoint, RandomCheckpoint, open_checkpoint
from .graph.export import export
from .graph.layers import ParamSpec

__all__ = [
    "Checkpoint",
    "DecoderConfig",
    "LlamaConfig",
    "ParamSpec",
    "RandomCheckpoint",
    "RopeScaling",
    "compile_model",
    "export",
    "open_checkpoint",
]
