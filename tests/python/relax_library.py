"""Compiles small Relax libraries: what anybody's compiler could have made, without kvctl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 13
HIDDEN = 8


def compile_library(path: Path, metadata: dict[str, Any] | str | None) -> Path:
    """A library with `embed` and `batch_prefill` (no attention), and `_metadata` unless None."""
    from tvm import ir, relax
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
    if metadata is not None:
        builder = relax.BlockBuilder(module)
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        with builder.function("_metadata", params=[]):
            builder.emit_func_output(ir.StringImm(text))
        module = builder.finalize()
    return _export(module, path)


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
