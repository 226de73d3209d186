"""Which collectives several workers can use; see kvctl.distributed.collectives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..._ffi.find_nccl import is_there, nccl_path
from .check import Check, note, ok


def collectives_check() -> Check:
    """Say which are there, and what brings the others. None is loaded."""
    spec = importlib.util.find_spec("kvctl._core")
    libraries = Path(spec.origin).parent / "lib" if spec is not None and spec.origin else Path()
    found, missing = [], []
    if (libraries / "libkvctl_disco_gloo.so").exists():
        found.append("gloo, between CPUs")
    else:
        missing.append("between CPUs: apt install libgloo-dev, then build kvctl again")
    nccl = nccl_path()
    if not (libraries / "libkvctl_disco_nccl.so").exists():
        missing.append("between CUDA devices: build kvctl again with KVCTL_DISTRIBUTED=ON")
    elif is_there(nccl):
        found.append(f"nccl, between CUDA devices ({nccl})")
    else:
        missing.append(f"between CUDA devices: {nccl} is missing, pip install nvidia-nccl-cu13")
    if not found:
        return note(
            "collectives",
            "none: a model runs on one worker",
            "; ".join([*missing, "see docs/machines/distributed.md"]),
        )
    texts = [f"{'; '.join(found)}: a model can run on several workers", *missing]
    return ok("collectives", "; ".join(texts))
