#!/usr/bin/env python
"""Store a head that `kvctl heads train` made, without the rows that are its target's.

The output layer of such a head is the target's, row by row; it is half of the file. kvctl reads the
rows of a head without one from the target, so the repository keeps only what was trained, and the
curve of its training.

    scripts/store_head.py build/heads/eagle3 examples/heads/smollm2_eagle3
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import numpy as np

from kvctl.cli.compile import resolve
from kvctl.cli.demo import DEMO_NAME
from kvctl.models import open_checkpoint
from kvctl.models.checkpoints.bfloat16 import to_bfloat16
from kvctl.models.checkpoints.safetensors_file import SafetensorsFile
from kvctl.models.checkpoints.safetensors_writer import write_safetensors

OUTPUT = re.compile(r"lm_head\.weight|\d+\.1\.weight")  # EAGLE-3's, and Medusa's of each head


def main() -> None:
    """Copy a head to where it is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", type=Path, help="what 'kvctl heads train' wrote")
    parser.add_argument("output", type=Path, help="the directory to write")
    parser.add_argument("--target-model", default=DEMO_NAME, help="the model that it is for")
    options = parser.parse_args()

    file = SafetensorsFile(options.head / "model.safetensors")
    target = open_checkpoint(resolve(options.target_model))
    offsets = file.integers("d2t")
    tied = target.config.tie_word_embeddings
    rows = target.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")[
        offsets + np.arange(len(offsets))
    ]
    outputs = [name for name in file.names if OUTPUT.fullmatch(name)]
    for name in outputs:
        if not np.array_equal(to_bfloat16(file.tensor(name)), to_bfloat16(rows)):
            raise SystemExit(f"{file.path}: {name} is not the target's, so it must stay")
    weights = [name for name in file.names if name not in (*outputs, "d2t", "t2d")]
    tensors = {name: to_bfloat16(file.tensor(name)) for name in weights}
    # int32 holds the map, and which tokens there are follows from it.
    tensors["d2t"] = offsets.astype(np.int32)
    options.output.mkdir(parents=True, exist_ok=True)
    write_safetensors(options.output / "model.safetensors", tensors, bfloat16=frozenset(weights))
    for name in ("config.json", "loss.json", "loss.svg"):
        shutil.copyfile(options.head / name, options.output / name)


if __name__ == "__main__":
    main()
