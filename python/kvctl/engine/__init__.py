"""Running models: the runner, its protocol, the functions of a library, and generation."""

from .compiled.function_table import FunctionTable
from .compiled.runner import ModelRunner
from .grammar import Grammar
from .protocol import Runner

__all__ = ["FunctionTable", "Grammar", "ModelRunner", "Runner"]
