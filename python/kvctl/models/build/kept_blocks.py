"""Which blocks of a GGUF file a compiled model keeps, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..checkpoints.gguf.blocks import block_type
from ..checkpoints.weights import Checkpoint, parameter_blocks, parameter_kinds
from ..graph.layers import BLOCK_BYTES, ParamSpec

KEPT = {BLOCK_BYTES[name]: name for name in ("int4_offset", "int8_parts")}
"""The blocks that only a file's own become, by their bytes."""

_KINDS = {
    "qkv": "model.layers.{}.self_attn.qkv_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "gate_up": "model.layers.{}.mlp.gate_up_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "lm_head": "lm_head.weight",
}


def kept_blocks(checkpoint: Checkpoint, dtype: str) -> dict[str, str]:
    """Return the blocks of each kind of layer, where they keep what a GGUF file has.

    Layers of one kind have one type: where a file has some of them finer, all have the finer one.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    dtype : str
        "int8" or "int4"; nothing is kept for others.
    """
    if dtype not in ("int8", "int4"):
        return {}
    config, bits = checkpoint.config, 8 if dtype == "int8" else 4
    found = {}
    for kind, name in _KINDS.items():
        if kind == ("up" if config.gated_mlp else "gate_up"):
            continue
        names = [name.format(layer) for layer in range(config.num_hidden_layers)]
        kinds = [of for one in dict.fromkeys(names) for of in parameter_kinds(checkpoint, one)]
        found[kind] = block_type(kinds, bits)
    # With int4 "int8" too: weights of Q5_0 keep their bits only there.
    return {kind: of for kind, of in found.items() if of not in (None, dtype)}


def kept_chunks(checkpoint: Checkpoint, param: ParamSpec) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a parameter's blocks as the file has them; see `parameter_blocks`."""
    return parameter_blocks(checkpoint, param.name, KEPT[param.shape[-1]])


def keeps(param: ParamSpec) -> bool:
    """Return whether a parameter is blocks of a file, as they are."""
    return param.dtype == "uint8" and param.shape[-1] in KEPT
