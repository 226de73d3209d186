"""How far the logits of one compiled model are from another's: of int4 from float32, say.

    python benchmarks/python/bench_dtypes.py REFERENCE OTHER [OTHER ...] [--texts FILE ...]

An OTHER may have the type of its K and V behind an @: MODEL@int8. Each reads the same texts once,
which are English, a program and this project's own words, or windows of the files of --texts. The
largest difference and its root mean square are over all logits, `error` is the latter over the
standard deviation of the reference's; `divergence` the mean of KL(reference, other) in nats; `same`
how often the best token is the same one, `accepted` the mean of the sums of min(p, q), which is the
part of drafts that sampling at temperature 1 accepts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kvctl
from kvctl.bench.machine_state import describe_machine, machine_load
from kvctl.text import Tokenizer

WINDOW = 256
RIVER = (
    "The river rose for three days and then it fell. Farmers who had moved their animals to the "
    "hills came back and found the lower fields under a thin layer of grey mud. Nobody in the "
    "village could say whether the old bridge would hold another winter, but the baker opened "
    "his shop before it was light, as he always did, and sold everything by noon."
)

PROGRAM = """\
def primes(limit):
    found = []
    for number in range(2, limit):
        if all(number % prime for prime in found):
            found.append(number)
    return found


print(primes(100))  # [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71]
"""
CACHE = (
    "A cache has sequences, and every sequence has a list of pages. A page that two sequences "
    "share is copied when one of them writes to it. Tokens that a draft proposed are pending: "
    "they are kept or dropped when the model has verified them, and the pages of those that were "
    "dropped are free again."
)

Logits = npt.NDArray[np.float32]


def windows(texts: list[Path], directory: Path) -> list[list[int]]:
    """Return the tokens of each text, of the files' at most four windows each."""
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    if not texts:
        return [tokenizer.encode(text) for text in (RIVER, PROGRAM, CACHE)]
    found = []
    for path in texts:
        tokens = tokenizer.encode(path.read_text())
        found += [tokens[i : i + WINDOW] for i in range(0, min(len(tokens), 4 * WINDOW), WINDOW)]
    return [tokens for tokens in found if len(tokens) > 1]


def logits_of(model: str, texts: list[list[int]]) -> Logits:
    """Return the logits behind every token of the texts but the first of each, (n, vocabulary)."""
    directory, _, kv_dtype = model.partition("@")
    runner = kvctl.ModelRunner.load(Path(directory), **({"kv_dtype": kv_dtype} if kv_dtype else {}))
    rows = []
    for tokens in texts:
        runner.cache.add_sequence(0)
        runner.prefill([0], [tokens[:1]])
        found = runner.verify([0], [kvctl.TokenTree.chain(tokens[1:])])
        rows.append(np.array(np.from_dlpack(found), np.float32))
        runner.cache.remove_sequence(0)
    return np.concatenate(rows)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the logarithms of the probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def difference(reference: Logits, other: Logits) -> dict[str, float]:
    """Return how far logits are from the reference's, (n, vocabulary) both."""
    apart = other.astype(np.float64) - reference
    p, q = log_softmax(reference), log_softmax(other)
    rms = float(np.sqrt((apart**2).mean()))
    return {
        "largest": float(np.abs(apart).max()),
        "rms": rms,
        "error": rms / float(reference.std(dtype=np.float64)),
        "divergence": float((np.exp(p) * (p - q)).sum(1).mean()),
        "same": float((other.argmax(1) == reference.argmax(1)).mean()),
        "accepted": float(np.exp(np.minimum(p, q)).sum(1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="the reference, then the others")
    parser.add_argument("--texts", type=Path, nargs="+", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    texts = windows(options.texts, Path(options.models[0].partition("@")[0]))
    reference = logits_of(options.models[0], texts)
    found: list[dict[str, Any]] = []
    print(f"{len(reference)} tokens beside {options.models[0]}")
    head = ("largest", "rms", "error", "divergence", "same", "accepted")
    print(f"{'model':<32}" + "".join(f"{name:>11}" for name in head))
    for model in options.models[1:]:
        directory, _, kv_dtype = model.partition("@")
        name = Path(directory).name + (f", K and V {kv_dtype}" if kv_dtype else "")
        row = difference(reference, logits_of(model, texts))
        found.append({"model": name, **row})
        print(f"{name:<32}" + "".join(f"{row[name]:11.4f}" for name in head), flush=True)
    if options.json:
        result = {
            "measured": {**describe_machine(), "load": [machine_load()["load"]] * 2},
            "reference": Path(options.models[0]).name,
            "tokens": len(reference),
            "models": found,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
