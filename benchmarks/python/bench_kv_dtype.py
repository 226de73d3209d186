"""Types of K and V: what reading them costs, and what they do to a model's probabilities.

``speed``: attention of new tokens over a long past, for each type of the pages. The caches take
turns in every round, and a table has the least times of one layer. ``quality``: the perplexity of
texts in windows of 512 tokens, and how often the most probable token is that of float32.

    python bench_kv_dtype.py [--threads 1] [--rounds 9] [--json out.json]
    python bench_kv_dtype.py --model build/models/smollm2 TEXT... [--windows 12] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

DTYPES = ("float32", "float16", "bfloat16", "int8")
SHAPES = {"9/3 heads of 64": (9, 3, 64), "32/8 heads of 128": (32, 8, 128)}
CONTEXTS, NEW_TOKENS = [8192, 32768], [1, 8]


class Past:
    """A cache of one layer with a past of random tokens."""

    def __init__(self, shape: tuple[int, int, int], context: int, dtype: str) -> None:
        import kvctl

        heads, kv_heads, dim = shape
        self.cache = kvctl.PagedKVCache.create(
            num_layers=1,
            num_qo_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            max_total_tokens=context + 64,
            prefill_chunk_size=1024,
            dtype=dtype,
        )
        self.cache.add_sequence(0)
        rng = np.random.default_rng(0)
        make = lambda n: rng.standard_normal((n, heads + 2 * kv_heads, dim), np.float32)  # noqa: E731
        for _ in range(context // 1024):
            with self.cache.forward([0], [1024], mask=kvctl.Mask.window(1)):
                self.cache.attention(0, make(1024))
        self.new = {n: make(n) for n in NEW_TOKENS}
        self.bytes = np.prod(self.cache.layer_pages(0).shape) * (
            {"float32": 4, "int8": 1}.get(dtype, 2)
        )

    def time(self, new: int) -> float:
        """Return the seconds of a layer's attention."""
        with self.cache.forward([0], [new], pending=True):
            begin = perf_counter()
            self.cache.attention(0, self.new[new])
            end = perf_counter()
        self.cache.abort()
        return end - begin


def measure_speed(rounds: int) -> list[dict[str, Any]]:
    """Return the least microseconds of each type, by shape, context and new tokens."""
    rows = []
    for name, shape in SHAPES.items():
        for context in CONTEXTS:
            pasts = {dtype: Past(shape, context, dtype) for dtype in DTYPES}
            for new in NEW_TOKENS:
                times: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
                for _ in range(rounds):
                    for dtype, past in pasts.items():
                        sleep(0.002)
                        times[dtype].append(past.time(new))
                row: dict[str, Any] = {"shape": name, "context": context, "new": new}
                row |= {dtype: min(found) * 1e6 for dtype, found in times.items()}
                rows.append(row)
                print(
                    f"{name:18} {context:6} {new:3}  "
                    + "  ".join(f"{dtype} {row[dtype]:8.0f} µs" for dtype in DTYPES)
                    + f"  int8 / float32 {row['int8'] / row['float32']:.2f}",
                    flush=True,
                )
            smaller = pasts["float32"].bytes / pasts["int8"].bytes
            print(f"{name:18} {context:6}      int8 pages are {smaller:.2f} times smaller")
    return rows


def measure_quality(model: str, texts: list[Path], most: int) -> dict[str, Any]:
    """Return the perplexity of each type over the texts, and its agreement with float32."""
    import kvctl
    from perplexity import WINDOW, log_probability, perplexity

    found: dict[str, Any] = {"model": Path(model).name, "texts": [path.name for path in texts]}
    windows: list[list[int]] = []
    best: list[np.ndarray] = []
    for dtype in DTYPES:
        runner = kvctl.ModelRunner.load(model, kv_dtype=dtype)
        if not windows:
            tokens = runner.text.tokenizer.encode("\n".join(path.read_text() for path in texts))
            cuts = range(0, len(tokens) - WINDOW + 1, WINDOW)
            windows = [tokens[i : i + WINDOW] for i in cuts][:most]
            if not windows:
                sys.exit(f"the texts have fewer than {WINDOW} tokens")
        sums, same = [], []
        for i, window in enumerate(windows):
            runner.cache.add_sequence(0)
            logits = np.from_dlpack(runner.forward([0], [window]))
            runner.cache.remove_sequence(0)
            sums.append(log_probability(logits, window))
            if dtype == DTYPES[0]:
                best.append(logits.argmax(axis=1))
            same.append(float((logits.argmax(axis=1) == best[i]).mean()))
        found[dtype] = {"perplexity": perplexity(sums), "same_choice": float(np.mean(same))}
        print(f"{dtype:9} perplexity {perplexity(sums):8.4f}, same choice {np.mean(same):.2%}")
    found["tokens"] = len(windows) * WINDOW
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--model", help="Measure quality on this compiled model, not speed.")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when kvctl is imported
    if options.model is None:
        from bench_attention import machine

        part = {"speed": {"machine": machine(), "threads": options.threads}}
        part["speed"]["rows"] = measure_speed(options.rounds)
    else:
        part = {"quality": measure_quality(options.model, options.texts, options.windows)}
    if options.json is not None:
        old = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(old | part, indent=1) + "\n")


if __name__ == "__main__":
    main()
