"""What drafting itself costs: lookups in a suffix store, and building trees.

    python bench_drafting.py --json out.json [--tokens 10000000] [--repeat 40]

The store's texts are made of phrases, some of which are much more frequent than others, as in
language: contexts occur from once to many thousands of times. A lookup's context is a place of a
text whose last 2 to 64 tokens are kept and all before them replaced, so that the length of the
match varies. Times are of calls from Python, in batches of 250: the least batch and the median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import kvctl
from kvctl import _core
from kvctl.draft import RoundCost, SuffixStore
from kvctl.draft.trees import best_first, optimal_static, rerank

VOCAB = 49152
BATCH = 250
CONTEXT = 70

Texts = list[npt.NDArray[np.int32]]


def make_texts(tokens: int, rng: np.random.Generator) -> Texts:
    """Return texts of about a thousand tokens each."""
    phrases = [
        rng.integers(0, VOCAB, int(length)).astype(np.int32)
        for length in rng.integers(2, 30, 100_000)
    ]
    parts, size = [], 0
    while size < tokens:
        for phrase in rng.zipf(1.2, 10_000):
            if phrase <= len(phrases):
                parts.append(phrases[phrase - 1])
                size += len(parts[-1])
    return np.array_split(np.concatenate(parts)[:tokens], max(1, tokens // 1000))


def make_contexts(texts: Texts, count: int, rng: np.random.Generator) -> Texts:
    """Return contexts whose last tokens are somewhere in the texts."""
    contexts = []
    for _ in range(count):
        text = texts[rng.integers(len(texts))]
        end = int(rng.integers(CONTEXT, len(text)))
        context = text[end - CONTEXT : end].copy()
        unlike = CONTEXT - int(rng.choice([2, 4, 8, 16, 64]))
        context[:unlike] = rng.integers(0, VOCAB, unlike)
        contexts.append(context)
    return contexts


def time_calls(call: Callable[[Any], object], inputs: Iterable[Any]) -> dict[str, float]:
    """Return microseconds per call."""
    inputs, times = list(inputs), []
    for begin in range(0, len(inputs), BATCH):
        batch = inputs[begin : begin + BATCH]
        start = perf_counter()
        for one in batch:
            call(one)
        times.append((perf_counter() - start) / len(batch) * 1e6)
    return {"least_us": min(times), "median_us": median(times)}


def measure_store(tokens: int, repeat: int) -> dict[str, Any]:
    """Measure a store of so many tokens."""
    rng = np.random.default_rng(0)
    texts = make_texts(tokens, rng)
    # Full: what is added later pushes the oldest texts out.
    store = SuffixStore(tokens + len(texts))
    start = perf_counter()
    store.extend(texts)
    built = perf_counter() - start
    contexts = make_contexts(texts, BATCH * repeat, rng)
    core: _core.SuffixStore = store._core
    result = {
        "tokens": store.num_tokens,
        "bytes_per_token": store.nbytes / store.num_tokens,
        "build_seconds": built,
        "longest match": time_calls(core.longest, contexts),
        "tree of 16": time_calls(lambda context: core.tree(context, 16, 16), contexts),
        "tree of 64": time_calls(lambda context: core.tree(context, 64, 16), contexts),
    }
    added = texts[:BATCH]
    start = perf_counter()
    for text in added:
        store.add(text)
    result["add_us_per_token"] = (perf_counter() - start) / sum(map(len, added)) * 1e6
    return result


def measure_trees(repeat: int) -> dict[str, Any]:
    """Measure the builders at 64 drafted nodes."""
    rng = np.random.default_rng(1)
    dense = rng.dirichlet(np.full(2000, 0.02), 8).astype(np.float32)
    tokens = np.ascontiguousarray(np.argsort(-dense, axis=1)[:, :32].astype(np.int32))
    probs = np.take_along_axis(dense, tokens, 1)
    cost = RoundCost(max_rows=65)
    cost.observe(1, 0.02)
    cost.observe(65, 0.03)
    large = best_first(probs, 256, root=0, tokens=tokens)
    calls = range(BATCH * repeat)
    return {
        "best_first": time_calls(lambda _: best_first(probs, 64, root=0, tokens=tokens), calls),
        "best_first under a cost": time_calls(
            lambda _: best_first(probs, 64, root=0, tokens=tokens, cost=cost), calls
        ),
        "rerank of 256": time_calls(lambda _: rerank(large.tree, large.rates, 64), calls),
        "optimal_static": time_calls(
            lambda _: optimal_static([0.6, 0.2, 0.1, 0.05], None, 64), range(repeat)
        ),
    }


def describe_machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "kvctl": kvctl.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--repeat", type=int, default=40, help="batches of 250 calls")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    options = parser.parse_args()

    result: dict[str, Any] = {"machine": describe_machine(), "stores": [], "trees": {}}
    print(", ".join(f"{name}: {value}" for name, value in result["machine"].items()))
    print("\nsuffix store       bytes/token  build s  add us/token   us: least (median)")
    for tokens in options.tokens:
        store = measure_store(tokens, options.repeat)
        result["stores"].append(store)
        times = ", ".join(
            f"{name} {one['least_us']:.1f} ({one['median_us']:.1f})"
            for name, one in store.items()
            if isinstance(one, dict)
        )
        print(
            f"{store['tokens']:12,d} tokens {store['bytes_per_token']:9.1f} "
            f"{store['build_seconds']:8.1f} {store['add_us_per_token']:13.1f}   {times}"
        )
    print("\ntrees of 64 nodes, us: least (median)")
    result["trees"] = measure_trees(options.repeat)
    for name, one in result["trees"].items():
        print(f"{name:24s} {one['least_us']:8.1f} ({one['median_us']:.1f})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
