"""Seeded weights for any tensors; a program without kvctl makes the same ones."""

from __future__ import annotations

import numpy as np


def seeded_weight(name, shape, *, seed=0, norms_from_one=False):
    """Return a weight by its name in the checkpoint, float32.

    `norms_from_one` says that norms are stored as distances from one.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    if name.endswith(".bias"):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32) - np.float32(norms_from_one)
    table = any(part in name for part in ("embed", "wte", "wpe"))
    scale = 0.5 if table else 1.3 * min(shape) ** -0.5
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def seeded_weights(shapes, **options):
    """Return weights by name, for a mapping of names to shapes."""
    return {name: seeded_weight(name, tuple(shape), **options) for name, shape in shapes.items()}
