"""What a model was compiled from and for, kept beside it, to be compared with what is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..._ffi import functions as ffi
from ..._ffi.untrusted import read_json_object

QUANTIZATION = {
    "float32": "q0f32",
    "float16": "q0f16",
    "bfloat16": "q0bf16",
    "int8": "q8f32",
    "int4": "q4f32",
}
"""MLC's names for what weights are saved as."""


def default_dtype(target: str) -> str:
    """Return the type of weights where none is asked for."""
    return "float32" if target == "cpu" else "float16"


def default_sums(target: str) -> str:
    """Return how several workers sum where nothing is asked for (`graph.tensor_parallel.SUMS`)."""
    return "whole" if target == "cpu" else "partial"


def asked_for(
    source: Path | None,
    *,
    target: str,
    dtype: str | None,
    cache: str | None,
    context_window_size: int | None,
    hidden_layers: Sequence[int] | None,
    exit_layers: Sequence[int],
    tensor_parallel: int = 1,
    tensor_parallel_sums: str | None = None,
) -> dict[str, Any]:
    """Return the arguments of `compile_model` as the directory keeps them, for JSON."""
    return {
        "source": None if source is None else source.resolve().name,
        "target": target,
        "dtype": dtype or default_dtype(target),
        "cache": cache,
        "context": context_window_size,
        "hidden_layers": None if hidden_layers is None else list(hidden_layers),
        "exit_layers": list(exit_layers),
        "tensor_parallel": tensor_parallel,
        "tensor_parallel_sums": None if tensor_parallel == 1 else tensor_parallel_sums,
    }


@cache
def compiler_id() -> str:
    """Return what names the graphs that this build of kvctl makes: its version and their source."""
    models = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("graph", "architectures"):
        for path in sorted((models / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return f"{ffi.build.get_version()} {digest.hexdigest()[:16]}"


def compare_with(output: Path, asked: dict[str, Any]) -> bool:
    """Compare what a directory was compiled for with what is asked for.

    Returns
    -------
    bool
        Whether this build of kvctl compiled it, as far as is known.

    Raises
    ------
    FileExistsError
        If it is another model, or for something else.
    """
    file = output / "mlc-chat-config.json"
    try:
        config = read_json_object(file) if file.exists() else {}
    except ValueError as error:
        raise FileExistsError(f"{output} is no whole model; --force replaces it: {error}") from None
    ours = config.get("kvctl")
    kept = ours.get("asked") if isinstance(ours, dict) else None
    if not isinstance(kept, dict):  # a build that did not keep it
        by_name = {name: dtype for dtype, name in QUANTIZATION.items()}
        kept = {"dtype": by_name.get(str(config.get("quantization")), asked["dtype"])}
    kept = {"tensor_parallel": 1, **kept}  # of builds that knew no other number
    sums = None if kept["tensor_parallel"] == 1 else "partial"
    kept = {"tensor_parallel_sums": sums, **kept}  # of builds that knew no other sums
    for name, value in asked.items():
        # Their defaults depend on the model and on the target.
        unsaid = name in ("cache", "tensor_parallel_sums") and value is None
        if not unsaid and kept.get(name, value) != value:
            raise FileExistsError(
                f"{output} holds a model that was compiled with {name} {kept[name]}, not {value}: "
                "--force compiles it again, or choose another directory"
            )
    return isinstance(ours, dict) and ours.get("compiler") == compiler_id()
