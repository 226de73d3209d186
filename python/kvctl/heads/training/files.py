"""What a training writes: the head as it would be published, and the state to go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..._ffi.untrusted import parse_json_object, reading
from ...models.checkpoints.bfloat16 import to_bfloat16
from ...models.checkpoints.safetensors_file import SafetensorsFile
from ...models.checkpoints.safetensors_writer import write_safetensors
from .shared import Shared

_STATE = "state/training.safetensors"  # not beside the head's files, whose part it is not


def write_head(folder: Path, kind: str, model: Any, shared: Shared, layers: list[int]) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the layout of the head's kind.

    Medusa's has no map of a reduced vocabulary; kvctl reads the same ``d2t`` and ``t2d`` there.
    """
    config = shared.config
    arrays = {name: _numpy(one) for name, one in model.by_name.items()}
    if kind == "eagle3":
        arrays["lm_head.weight"] = _numpy(shared.output)
    else:
        arrays |= {f"{head}.1.weight": _numpy(shared.output) for head in range(model.steps)}
    tensors: dict[str, Any] = {name: to_bfloat16(one) for name, one in arrays.items()}
    ids = shared.token_ids.numpy()
    tensors["d2t"] = ids - np.arange(len(ids))
    tensors["t2d"] = np.isin(np.arange(config.vocab_size), ids)
    fields: dict[str, Any] = {"torch_dtype": "bfloat16"}
    if kind == "eagle3":
        fields |= {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "num_hidden_layers": 1,
            "vocab_size": config.vocab_size,
            "draft_vocab_size": len(ids),
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
            "max_position_embeddings": config.context_window_size,
            "hidden_act": "silu",
            "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in layers[:3]],
        }
        if config.rope_scale != 1.0:
            fields["rope_scaling"] = {"rope_type": "linear", "factor": 1.0 / config.rope_scale}
    else:
        fields |= {"medusa_num_heads": model.steps, "medusa_num_layers": 1}
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    write_safetensors(folder / "model.safetensors", tensors, bfloat16=frozenset(arrays))


def save_state(
    folder: Path, model: Any, optimizer: Any, batch: int, record: dict[str, Any]
) -> None:
    """Write the weights, what AdamW knows of them, and the record, after so many batches.

    It is one file, so a save that is interrupted leaves the state before it.
    """
    tensors: dict[str, Any] = {}
    for i, (name, one) in enumerate(model.by_name.items()):
        tensors[name] = _numpy(one)
        state = optimizer.state_dict()["state"].get(i)
        if state is not None:
            tensors[f"{name}:mean"] = _numpy(state["exp_avg"])
            tensors[f"{name}:square"] = _numpy(state["exp_avg_sq"])
    (folder / _STATE).parent.mkdir(exist_ok=True)
    metadata = {"record": json.dumps({**record, "batch": batch})}
    write_safetensors(folder / _STATE, tensors, metadata=metadata)


def load_state(folder: Path, model: Any, optimizer: Any, record: dict[str, Any]) -> int:
    """Go on from a saved state, if there is one; returns the batches that were trained.

    Raises
    ------
    ValueError
        If it is the state of another training, or damaged.
    """
    path = folder / _STATE
    if not path.exists():
        return 0
    file = SafetensorsFile(path)
    with reading(str(path)):
        before = parse_json_object(file.metadata["record"], f"the record of {path}")
        for name in ("training", "texts", "tokens"):
            if before.get(name) != record[name]:
                raise ValueError(
                    f"{folder} holds the state of another training ({name} {before.get(name)!r}, "
                    f"not {record[name]!r}): choose another directory, or remove {_STATE}"
                )
        batch, state = int(before["batch"]), {}
        with torch.no_grad():
            for i, (name, one) in enumerate(model.by_name.items()):
                one.copy_(torch.from_numpy(file.tensor(name)))
                if f"{name}:mean" in file:
                    state[i] = {
                        "step": torch.tensor(float(batch)),
                        "exp_avg": torch.from_numpy(file.tensor(f"{name}:mean")),
                        "exp_avg_sq": torch.from_numpy(file.tensor(f"{name}:square")),
                    }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        record.update({name: before[name] for name in ("seconds", "losses", "held_out")})
    return batch


def _numpy(tensor: Any) -> Any:
    return tensor.detach().float().numpy()
