"""Running compiled models: the runner, the functions of a library, and generation."""

from .function_table import FunctionTable
from .runner import ModelRunner

__all__ = ["FunctionTable", "ModelRunner"]
