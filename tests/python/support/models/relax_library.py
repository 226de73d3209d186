"""Compiles small Relax libraries: what anybody's compiler could have made, without kvctl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tvm_ffi

VOCABULARY = 13
HIDDEN = 8
METADATA = "relax_library.metadata"


def compile_library(path: Path, *, metadata: bool = True) -> Path:
    """A library with `embed` and `batch_prefill` (no attention), and `_metadata` if wanted.

    What `_metadata` returns is decided later, by `metadata_says`: one library serves many tests.
    """
    from tvm import relax
    from tvm.relax.frontend import nn
    from tvm.relax.frontend.nn import op

    class Model(nn.Module):
        def __init__(self) -> None:
            self.table = nn.Parameter((VOCABULARY, HIDDEN))
            self.head = nn.Parameter((VOCABULARY, HIDDEN))

        def embed(self, ids: nn.Tensor) -> nn.Tensor:
            return op.take(self.table, ids, axis=0)

        def batch_prefill(self, x: nn.Tensor, positions: nn.Tensor) -> nn.Tensor:
            rows = op.take(x, positions, axis=1)
            return op.matmul(rows, op.permute_dims(self.head))

    packed = {"param_mode": "packed", "effect_mode": "none"}
    module, _ = Model().export_tvm(
        {
            "embed": {"ids": nn.spec.Tensor(["n"], "int32"), "$": packed},
            "batch_prefill": {
                "x": nn.spec.Tensor([1, "n", HIDDEN], "float32"),
                "positions": nn.spec.Tensor(["b"], "int32"),
                "$": packed,
            },
        }
    )
    if metadata:
        builder = relax.BlockBuilder(module)
        with builder.function("_metadata", params=[]):
            call = relax.call_pure_packed(METADATA, ty_args=relax.AnyType())
            builder.emit_func_output(builder.emit(call))
        module = builder.finalize()
    return _export(module, path)


def metadata_says(metadata: dict[str, Any] | str) -> None:
    """Decide what the libraries that are loaded from now on say about themselves."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    tvm_ffi.register_global_func(METADATA, lambda: text, override=True)


def compile_caller(path: Path, function: str) -> Path:
    """A library whose `main(x)` calls a global function by name."""
    from tvm.relax.frontend import nn
    from tvm.relax.frontend.nn import op

    class Caller(nn.Module):
        def main(self, x: nn.Tensor) -> nn.Tensor:
            return op.extern(function, [x], out=nn.Tensor.placeholder((2,), "float32"))

    module, _, _ = Caller().export_tvm(
        {"main": {"x": nn.spec.Tensor((2,), "float32")}}, allow_extern=True
    )
    return _export(module, path)


def _export(module: Any, path: Path) -> Path:
    import tvm

    tvm.compile(module, target=tvm.target.Target("llvm")).export_library(str(path))
    return path
