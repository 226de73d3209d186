"""Medusa's layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...models.checkpoints.config import DecoderConfig
from ..config import HeadConfig
from .layout import Files, Layout, add_target_norm
from .token_ids import read_token_ids

MEDUSA_BLOCK = re.compile(r"(medusa_head\.)?(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)")


def read_medusa(
    fields: Mapping[str, Any], files: Files, target: DecoderConfig
) -> tuple[Layout, HeadConfig]:
    """Read Medusa's layout: heads of residual blocks and an output layer."""
    layout = Layout()
    found = [match for name in files if (match := MEDUSA_BLOCK.fullmatch(name))]
    prefix = found[0][1] or ""
    heads = max(int(match[2]) for match in found) + 1
    # Heads that were trained under the target's own output layer have none.
    shared = not any(match[4] == "weight" for match in found)
    blocks = max(int(match[3]) for match in found) + shared
    for name, have in (("medusa_num_heads", heads), ("medusa_num_layers", blocks)):
        if fields.get(name, have) != have:
            raise ValueError(f"{name} is {fields[name]!r}, and its tensors have {have}")
    token_ids = read_token_ids(files, target, layout)
    size = len(token_ids) if token_ids else target.vocab_size
    config = HeadConfig(
        "medusa",
        target,
        target,
        (target.num_hidden_layers - 1,),
        size,
        token_ids=token_ids,
        num_heads=heads,
        num_blocks=blocks,
    )
    add_target_norm(layout, target, "feature_norm", "model.norm")
    for head in range(heads):
        for block in range(blocks):
            for part in ("weight", "bias"):
                name = f"{prefix}{head}.{block}.linear.{part}"
                layout.add(f"blocks.{head * blocks + block}.linear.{part}", name)
        output = f"lm_heads.{head}.weight"
        if shared:
            layout.add(output, "target:lm_head.weight", rows=token_ids or None)
        else:
            layout.add(output, f"{prefix}{head}.{blocks}.weight")
    return layout, config
