"""The tiny models of families, whose logits transformers computed, as checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from family_weights import seeded_weights
from huggingface_files import write_shards

FOLDER = Path(__file__).resolve().parents[2] / "models/families/logits"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))


class Family:
    """One fixture of ``scripts/make_family_fixtures.py``."""

    def __init__(self, case):
        with np.load(FOLDER / f"{case}.npz") as arrays:
            self.config = json.loads(str(arrays["config"]))
            self.shapes = json.loads(str(arrays["shapes"]))
            self.tokens = arrays["tokens"].tolist()
            self.logits = arrays["logits"]

    def weights(self):
        """Return the weights under transformers' names."""
        gemma = self.config["model_type"].startswith("gemma")
        return seeded_weights(self.shapes, norms_from_one=gemma)

    def write(self, directory, **changes):
        """Write config.json and model.safetensors; a change to None leaves a field out."""
        directory.mkdir(parents=True, exist_ok=True)
        config = {**self.config, **changes}
        for field in [field for field in changes if changes[field] is None]:
            del config[field]
        (directory / "config.json").write_text(json.dumps(config))
        write_shards(directory, {"model.safetensors": self.weights()}, index=False)
        return directory
