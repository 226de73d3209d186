"""How far the logits of one compiled model are from another's: of int4 from float32, say.

    python benchmarks/python/bench_dtypes.py REFERENCE OTHER [OTHER ...] [--json out.json]

Each reads the same text once. The error is the root mean square of the difference over the standard
deviation of the reference's logits; `same` is how often the best token is the same one, `accepted`
the sum of min(p, q), which is the part of drafts that sampling at temperature 1 accepts.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

import kvctl
from kvctl.text import Tokenizer

TEXT = (
    "The river rose for three days and then it fell. Farmers who had moved their animals to the "
    "hills came back and found the lower fields under a thin layer of grey mud. Nobody in the "
    "village could say whether the old bridge would hold another winter, but the baker opened "
    "his shop before it was light, as he always did, and sold everything by noon."
)

Logits = npt.NDArray[np.float64]


def logits_of(directory: Path) -> Logits:
    """Return the logits of every position of the text, (tokens, vocabulary)."""
    runner = kvctl.ModelRunner.load(directory)
    tokens = Tokenizer.from_file(directory / "tokenizer.json").encode(TEXT)
    runner.cache.add_sequence(0)
    runner.prefill([0], [tokens[:1]])
    rows = runner.verify([0], [kvctl.TokenTree.chain(tokens[1:])])
    return np.asarray(np.from_dlpack(rows), np.float64)


def softmax(logits: Logits) -> Logits:
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="the reference, then the others")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reference = logits_of(options.models[0])
    p = softmax(reference)
    found = []
    print(f"{len(reference)} tokens beside {options.models[0]}")
    print(f"{'model':<40} {'error':>8} {'same':>6} {'accepted':>9}")
    for directory in options.models[1:]:
        other = logits_of(directory)
        row = {
            "model": directory.name,
            "error": float(np.sqrt(((other - reference) ** 2).mean()) / reference.std()),
            "same": float((other.argmax(1) == reference.argmax(1)).mean()),
            "accepted": float(np.minimum(p, softmax(other)).sum(1).mean()),
        }
        found.append(row)
        print(
            f"{row['model']:<40} {row['error']:8.4f} {row['same']:6.0%} {row['accepted']:9.3f}",
            flush=True,
        )
    if options.json:
        machine = {"cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        result = {
            "machine": machine,
            "kvctl": kvctl.__version__,
            "reference": options.models[0].name,
            "tokens": len(reference),
            "models": found,
        }
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
