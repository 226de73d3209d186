"""Open the model that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Runner

#: How an argument of a command names a model; every command prints it.
MODEL_HELP = "A model directory ('kvctl compile' makes one)."


def open_runner(model: str) -> Runner:
    """Load the model of that name.

    Raises
    ------
    FileNotFoundError, ValueError, NotImplementedError
        As :meth:`kvctl.ModelRunner.load`.
    """
    from ..engine.runner import ModelRunner
    from ..text.model_text import require_text_files

    require_text_files(Path(model))  # before the parameters are read
    return ModelRunner.load(model)
