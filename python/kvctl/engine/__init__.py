"""Running models: the runner, its protocol, the functions of a library, and generation."""

from .function_table import FunctionTable
from .protocol import Runner
from .runner import ModelRunner

__all__ = ["FunctionTable", "ModelRunner", "Runner"]
