"""Compile a recurrent or hybrid model with seeded random weights into a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.relax.frontend import nn

from ..graph.export import export_module
from ..graph.gated_delta_net import GatedDeltaNetConfig, RecurrentForCausalLM
from ..graph.hybrid import HybridConfig, HybridForCausalLM
from ..graph.layers import KvctlLayers, ParamSpec
from .chat_config import file_md5
from .library import build, make_target
from .metadata import cache_shape, make_metadata
from .params import ParamWriter


def export_recurrent(
    config: GatedDeltaNetConfig, *, emit_steps: bool = True
) -> tuple[Any, list[ParamSpec]]:
    """Build the graph of a gated delta net or, of a `HybridConfig`, of a hybrid.

    Parameters
    ----------
    config : GatedDeltaNetConfig
        The model's shape.
    emit_steps : bool
        Whether ``batch_verify`` sets the state after every token, so that a rollback can go to any
        of them (snapshots). If not, the kept tokens run again (replay), and verification takes
        chains only.

    Returns
    -------
    module, params
        MLC-LLM's functions by their names, and the parameters in the order in which they take them.
    """
    kind = HybridForCausalLM if isinstance(config, HybridConfig) else RecurrentForCausalLM
    model = kind(config, KvctlLayers("float32"), emit_steps=emit_steps)
    spec = nn.spec.ModuleSpec.from_raw(model.functions(), model)
    return export_module(model, spec, dtype="float32")


def random_parameter(param: ParamSpec, *, seed: int) -> npt.NDArray[np.float32]:
    """Return random weights of a plausible size, the same for the same seed and name."""
    rng = np.random.default_rng([seed, *param.name.encode()])
    kind = param.name.rsplit(".", 1)[-1]
    if kind == "a_log":
        return np.log(rng.uniform(0.5, 4.0, param.shape)).astype(np.float32)
    if kind == "dt_bias":  # decays from 0.99 to 0.5: memories of a few to a hundred tokens
        return rng.uniform(-5.0, -1.0, param.shape).astype(np.float32)
    if len(param.shape) == 1:
        return rng.uniform(0.5, 1.5, param.shape).astype(np.float32)
    scale = 0.5 if "embed" in param.name or kind == "conv" else param.shape[1] ** -0.5
    return rng.standard_normal(param.shape, dtype=np.float32) * np.float32(scale)


def compile_recurrent(
    config: GatedDeltaNetConfig,
    output_dir: str | Path,
    *,
    emit_steps: bool = True,
    seed: int = 0,
) -> Path:
    """Compile a model with random weights for the CPU and write its directory.

    Parameters
    ----------
    config : GatedDeltaNetConfig
        The model's shape; a `HybridConfig` makes a hybrid.
    output_dir : str or Path
        A new or empty directory.
    emit_steps : bool
        See `export_recurrent`.
    seed : int
        Seeds the weights.

    Returns
    -------
    Path
        `output_dir`.

    Raises
    ------
    FileExistsError
        If there is something in `output_dir`.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another directory")
    module, params = export_recurrent(config, emit_steps=emit_steps)
    metadata = _metadata(config, params, emit_steps=emit_steps)
    build(module, metadata, make_target("cpu")).export_library(str(output / "lib.so"))
    writer = ParamWriter(output)
    for param in params:
        writer.add(param.name, random_parameter(param, seed=seed))
    writer.finish({})
    chat = {
        "version": "0.1.0",
        **{key: metadata[key] for key in ("model_type", "quantization", "context_window_size")},
        "prefill_chunk_size": metadata["prefill_chunk_size"],
        "vocab_size": config.vocab_size,
        "tokenizer_files": [],
        "kvctl": {"library_md5": file_md5(output / "lib.so")},
    }
    (output / "mlc-chat-config.json").write_text(json.dumps(chat, indent=1))
    return output


def _metadata(
    config: GatedDeltaNetConfig, params: list[ParamSpec], *, emit_steps: bool
) -> dict[str, Any]:
    """Return what the library says of itself: MLC's fields, and ours under "kvctl"."""
    hybrid = isinstance(config, HybridConfig)
    recurrent = {
        "num_layers": config.num_recurrent_layers,
        "states": [{"shape": list(spec.shape), "dtype": spec.dtype} for spec in config.state_specs],
        "emits_steps": emit_steps,
    }
    return make_metadata(
        params,
        model_type="gated_delta_net_hybrid" if hybrid else "gated_delta_net",
        quantization="q0f32",
        context_window_size=config.context_window_size,
        prefill_chunk_size=min(config.context_window_size, 512),
        vocab_size=config.vocab_size,
        kv_state_kind="hybrid" if hybrid else "rnn_state",
        kv_cache=cache_shape(config, config.num_attention_layers)
        if isinstance(config, HybridConfig)
        else None,
        kvctl={"recurrent": recurrent},
    )
