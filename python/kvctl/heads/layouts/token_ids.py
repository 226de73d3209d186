"""The map of a head's reduced vocabulary."""

from __future__ import annotations

import numpy as np

from ...models.checkpoints.config import DecoderConfig
from .layout import Files, Layout


def read_token_ids(files: Files, target: DecoderConfig, layout: Layout) -> tuple[int, ...]:
    """Return the target's tokens of the head's, from ``d2t``; ``t2d`` must agree with it."""
    layout.ignored |= {"d2t", "t2d"} & set(files)
    if "d2t" not in files:
        if "t2d" in files:
            raise ValueError("it has a t2d and no d2t")
        return ()
    offsets = files["d2t"].integers("d2t")
    if offsets.ndim != 1:
        raise ValueError(f"d2t must be a list, not of shape {offsets.shape}")
    ids = offsets + np.arange(len(offsets))
    if ids.size == 0 or ids.min() < 0 or ids.max() >= target.vocab_size:
        raise ValueError(f"d2t names tokens outside the target's 0 to {target.vocab_size - 1}")
    if len(np.unique(ids)) != len(ids):
        raise ValueError("d2t names a token twice")
    if "t2d" in files:
        known = files["t2d"].integers("t2d")
        if known.shape != (target.vocab_size,):
            raise ValueError(
                f"t2d has the shape {known.shape}, and the target {target.vocab_size} tokens"
            )
        if not np.array_equal(np.flatnonzero(known), np.sort(ids)):
            raise ValueError("t2d and d2t do not name the same tokens")
    return tuple(ids.tolist())
