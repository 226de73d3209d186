"""Running models: the runner, its protocol, the functions of a library, and generation."""

from .function_table import FunctionTable
from .grammar import Grammar
from .protocol import Runner
from .runner import ModelRunner

__all__ = ["FunctionTable", "Grammar", "ModelRunner", "Runner"]
