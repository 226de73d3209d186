"""In which layout a head was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.checkpoints.config import DecoderConfig
from ..config import HeadConfig
from .eagle import read_eagle, read_eagle3
from .layout import Files, Layout
from .medusa import MEDUSA_BLOCK, read_medusa
from .mtp import find_mtp, read_mtp

_UNSUPPORTED = ("norm_output", "fc_norm", "layernorms", "parallel_drafting")


def read_layout(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig
) -> tuple[Layout, HeadConfig]:
    """Find out how a head was published, and what its shape is.

    Parameters
    ----------
    fields
        Its ``config.json``.
    files
        The file of each tensor.
    target
        The model it is for.

    Raises
    ------
    ValueError
        If it is none that kvctl builds, or of another target.
    """
    names = find_mtp(files, target)
    if names is not None:
        return read_mtp(names, files, target)
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise ValueError(f"kvctl does not build heads with {name} {fields[name]!r}")
    speculators = fields.get("speculators_model_type")
    if speculators not in (None, "eagle", "eagle3"):
        raise ValueError(f"kvctl builds speculators of type eagle and eagle3, not {speculators!r}")
    if speculators == "eagle":
        return read_eagle(fields, files, target, "fusion_fc", "transformer")
    if speculators == "eagle3":
        return read_eagle3(fields, files, target, "layers.0", norm_first=True)
    if any(name.startswith("midlayer.") for name in files):
        return read_eagle3(fields, files, target, "midlayer", norm_first=False)
    if "d2t" in files and "layers.0.hidden_norm.weight" in files:
        return read_eagle3(fields, files, target, "layers.0", norm_first=False)
    if "fc.weight" in files:
        return read_eagle(fields, files, target, "fc", "layers.0")
    if any(MEDUSA_BLOCK.fullmatch(name) for name in files):
        return read_medusa(fields, files, target)
    some = ", ".join(sorted(files)[:4])
    raise ValueError(
        f"its tensors ({some}) are in no layout of heads that kvctl knows: EAGLE's, EAGLE-3's, "
        "Medusa's, vLLM speculators' or that of modules for multi-token prediction"
    )
