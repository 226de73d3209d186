"""Perplexity of a GGUF model compiled by kvctl beside llama.cpp's, on the same tokens.

python perplexity.py MODEL.gguf TEXT... [--llama-python PYTHON] [--windows 12] [--json OUT.json]

The texts are joined, tokenized by the model's own tokenizer, and cut into windows of 512 tokens.
Each window is forwarded alone; the perplexity is over all its tokens but the first. PYTHON is an
interpreter that has llama-cpp-python, by default this one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WINDOW = 512


def log_probability(logits: np.ndarray, tokens: list[int]) -> float:
    """Return the sum of the log-probabilities of tokens 1, 2, ...; logits (n, vocabulary)."""
    rows = logits[:-1].astype(np.float64)
    highest = rows.max(axis=1, keepdims=True)
    totals = np.log(np.exp(rows - highest).sum(axis=1)) + highest[:, 0]
    return float((rows[np.arange(len(rows)), tokens[1:]] - totals).sum())


def perplexity(log_probabilities: list[float]) -> float:
    """Return the perplexity over windows."""
    return math.exp(-sum(log_probabilities) / (len(log_probabilities) * (WINDOW - 1)))


def by_llama(model: str, windows: list[list[int]]) -> dict[str, object]:
    """Run llama.cpp; this part runs in its own interpreter."""
    import llama_cpp
    from llama_cpp import llama_cpp as low

    # Weights stay as they are in the file: repacked for AMX, those of Q4_1 end the process.
    defaults = low.llama_model_default_params

    def without_repacking() -> object:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    low.llama_model_default_params = without_repacking
    llama = llama_cpp.Llama(
        model, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, n_gpu_layers=0, verbose=False
    )
    found = []
    for tokens in windows:
        llama.reset()
        llama.eval(tokens)
        found.append(log_probability(np.array(llama.scores[: len(tokens)]), tokens))
    return {"version": llama_cpp.__version__, "log_probabilities": found}


def by_kvctl(model: str, texts: list[str], most: int) -> tuple[list[list[int]], list[float]]:
    """Compile and run the model; returns the windows and their log-probabilities."""
    import kvctl
    from kvctl.models import compile_model

    with tempfile.TemporaryDirectory() as scratch:
        runner = kvctl.ModelRunner.load(compile_model(model, Path(scratch) / "model"))
        tokens = runner.text.tokenizer.encode("\n".join(texts))
        windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
        found = []
        for window in windows[:most]:
            runner.cache.add_sequence(0)
            found.append(log_probability(np.from_dlpack(runner.forward([0], [window])), window))
            runner.cache.remove_sequence(0)
    return windows[:most], found


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--llama", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.llama:
        print(json.dumps(by_llama(arguments.model, json.load(sys.stdin))))
        return
    texts = [path.read_text() for path in arguments.texts]
    windows, ours = by_kvctl(arguments.model, texts, arguments.windows)
    if not windows:
        sys.exit(f"the texts have fewer than {WINDOW} tokens")
    ran = subprocess.run(
        [arguments.llama_python, __file__, "--llama", arguments.model],
        input=json.dumps(windows),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(ran.stderr)
    theirs = json.loads(ran.stdout.splitlines()[-1])
    found = {
        "model": Path(arguments.model).name,
        "texts": [path.name for path in arguments.texts],
        "tokens": len(windows) * WINDOW,
        "kvctl": perplexity(ours),
        "llama.cpp": perplexity(theirs["log_probabilities"]),
        "llama-cpp-python": theirs["version"],
    }
    found["kvctl_over_llama.cpp"] = found["kvctl"] / found["llama.cpp"]
    print(json.dumps(found))
    if arguments.json is not None:
        old = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        rest = [one for one in old if one["model"] != found["model"]]
        arguments.json.write_text(json.dumps([*rest, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
