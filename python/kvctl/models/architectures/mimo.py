"""MiMo: Qwen2 with a module for multi-token prediction, of which `kvctl.heads` makes a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architecture import Architecture, Layout
from .qwen2 import read_qwen

if TYPE_CHECKING:
    from ..checkpoints.huggingface_config import HuggingFaceConfig


def _read(config: HuggingFaceConfig) -> dict[str, Any]:
    """Read what Qwen2 has; the biases are said to be there."""
    if not config.flag("attention_bias", True):
        raise config.refuse("kvctl builds MiMo with biases of q, k and v, not without")
    return read_qwen(config)


MIMO = Architecture(
    model_type="mimo",
    class_name="MiMoForCausalLM",
    huggingface=Layout(beside=r"model\.mtp_layers\..*"),
    fields={"qkv_bias": True},
    read_huggingface=_read,
    uses=(
        "use_sliding_window",
        "sliding_window",
        "layer_types",
        "attention_bias",
        "num_nextn_predict_layers",
    ),
)
