"""Open the model that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.protocol import Runner

HF = "hf:"
#: How an argument of a command names a model; every command prints it.
MODEL_HELP = (
    "A model directory ('kvctl compile' makes one), or 'hf:' and a transformers model: a directory "
    "or a name on the hub (needs kvctl[hf])."
)
#: What the commands' --kv-dtype chooses.
KV_DTYPE_HELP = (
    "The type of K and V in the cache: float32, float16, bfloat16, int8, or float8_e4m3fn on CUDA; "
    "by default the model's."
)


#: What the option that names a number of workers says of itself.
WORKERS_HELP = (
    "Run the model on so many worker processes, joined by Gloo (docs/machines/distributed.md)."
)


def open_runner(model: str, *, talks: bool = True, workers: int = 1, **options: Any) -> Runner:
    """Load the model of that name; `options` are its loader's.

    Where it `talks`, its tokenizer must be there. Several `workers` run a compiled model together.

    Raises
    ------
    ImportError
        If a package is missing that such a model needs, or the collectives of several workers.
    FileNotFoundError, OSError, ValueError, NotImplementedError
        As :meth:`kvctl.ModelRunner.load`, and ``kvctl.hf.ModelRunner.load``.
    """
    if model.startswith(HF):
        if workers > 1:
            raise ValueError("several workers run compiled models, not those of transformers")
        from . import hf

        return hf.ModelRunner.load(model.removeprefix(HF), **options)

    from .engine.compiled.runner import ModelRunner
    from .text.model_text import require_text_files

    if talks:
        require_text_files(Path(model))  # before the parameters are read
    if workers > 1:
        from . import distributed

        return distributed.ModelRunner.load(model, workers=workers, **options)
    return ModelRunner.load(model, **options)
