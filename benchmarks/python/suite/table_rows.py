"""The rows of each table: a benchmark's result to cells, the first row the head's."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from statistics import median
from typing import Any

Rows = Iterator[list[str]]


def short(value: float) -> str:
    """Return a number with two digits that say something, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def micro(seconds: float) -> str:
    """Return a time in microseconds, or in milliseconds where it is long."""
    return f"{short(1e3 * seconds)} ms" if seconds >= 1e-2 else f"{short(1e6 * seconds)} µs"


def mean_ratio(pairs: list[tuple[float, float]]) -> str:
    """Return the geometric mean of the ratios of the second to the first."""
    return f"{exp(sum(log(b / a) for a, b in pairs) / len(pairs)):.2f}x"


def step_cost(result: Any) -> Rows:
    yield ["batch", "context", "drafts", "kvctl", "TVM", "ratio"]
    for row in result["rows"]:
        ours, theirs = (row[side]["step"]["median_us"] for side in ("kvctl", "tvm"))
        context = f"{row['context'] // 1024}k"
        times = [f"{short(ours)} µs", f"{short(theirs)} µs", f"{ours / theirs:.2f}x"]
        yield [str(row["batch"]), context, row["shape"], *times]


def mask_lowering(result: Any) -> Rows:
    yield ["mask of 64 new tokens", "median"]
    for name, time in result["masks"].items():
        yield [name, f"{short(time['median_us'])} µs"]


def verification(result: Any) -> Rows:
    sizes = list(dict.fromkeys((one["vocab"], one["batch"]) for one in result["calls"]))
    yield ["rule", *(f"{vocab // 1000}k logits, {batch} sequences" for vocab, batch in sizes)]
    least: dict[str, list[str]] = {}
    for one in result["calls"]:
        least.setdefault(one["rule"], []).append(micro(1e-6 * one["time"]["least_us"]))
    for rule, times in least.items():
        yield [f"`{rule}`", *times]


def verify(result: Any) -> Rows:
    yield ["rule", "cases", "beside torch", "least", "beside NumPy", "least "]
    for rule in dict.fromkeys(row["rule"] for row in result["rows"]):
        found = [row for row in result["rows"] if row["rule"] == rule]
        cells = []
        for peer in ("torch", "numpy"):
            ratios = [row[f"times_{peer}"] for row in found if row.get(f"times_{peer}")]
            pairs = [(1.0, ratio) for ratio in ratios]
            cells += [mean_ratio(pairs), f"{min(ratios):.1f}x"] if ratios else ["", ""]
        yield [f"`{rule}`", str(len(found)), *cells]


def attention(result: Any) -> Rows:
    parts = {
        "sdpa": ("torch's attention with a boolean mask / kvctl's", "kvctl", "torch"),
        "tvm": ("TVM's own kernels under a tree / kvctl's", "kvctl", "tvm"),
        "shared": ("8 separate sequences / 8 forks of a prefix", "forks", "separate"),
        "observer": ("with sums of what each token gets / alone", "plain", "observed"),
    }
    yield ["compared", "threads", "shapes", "geometric mean", "least", "most"]
    for part, (title, first, second) in parts.items():
        for threads, found in result.get(part, {}).items():
            shapes = found["rows"] if part == "sdpa" else found
            pairs = [(row[first][0], row[second][0]) for row in shapes]
            ratios = [b / a for a, b in pairs]
            spread = [mean_ratio(pairs), f"{min(ratios):.2f}x", f"{max(ratios):.2f}x"]
            yield [title, threads, str(len(pairs)), *spread]


def recurrent(result: Any) -> Rows:
    yield ["model", "drafts", "snapshots: a round", "replay, all kept", "replay, one rejected"]
    for model, entry in result["models"].items():
        for drafts, ways in entry["rounds"].items():
            snapshot = median(one["round_ms"] for one in ways["snapshot"])
            *some, all_kept = (one["round_ms"] for one in ways["replay"])
            times = (f"{short(one)} ms" for one in (snapshot, all_kept, median(some)))
            yield [model, drafts, *times]


def model(result: Any) -> Rows:
    yield ["forwarded", "least", "of one row", "median", "of the memory's limit"]
    seconds = dict(result["seconds"])
    prompt = min(seconds.pop("prefill"))
    limit = result["weight_bytes"] / result["bytes_per_second"]
    for rows, times in seconds.items():
        ratio = min(times) / min(seconds["1"])
        ms = [f"{1e3 * min(times):.1f} ms", f"{ratio:.2f}x", f"{1e3 * median(times):.1f} ms"]
        yield [f"{rows} row{'s' if rows != '1' else ''}", *ms, f"{limit / min(times):.0%}"]
    speed = f"{result['prompt'] / prompt:.0f} tokens/s"
    yield [f"a prompt of {result['prompt']}", f"{1e3 * prompt:.0f} ms", "", speed, ""]


def drafting(result: Any) -> Rows:
    kinds = ["longest match", "tree of 16", "tree of 64"]
    yield ["tokens", "bytes per token", *kinds]
    for store in result["stores"]:
        times = (f"{short(store[kind]['least_us'])} µs" for kind in kinds)
        yield [f"{store['tokens']:,}", f"{store['bytes_per_token']:.1f}", *times]


def generate(result: Any) -> Rows:
    engines, tokens = result["engines"], result["tokens"] - 1
    yield ["", *engines.values()]
    for rows in next(iter(result["steps"].values())):
        cells = []
        for engine in engines:
            steps = result["steps"][engine]
            least = steps[rows]["least"]
            cells.append(f"{1e3 * least:.1f} ms ({least / steps['1']['least']:.2f}x)")
        yield [f"a forward of {rows}", *cells]
    for prompt, found in result["generation"].items():
        for kind in ("plain", "lookup"):
            rates = (f"{tokens / found[engine][kind]['least']:.0f} tokens/s" for engine in engines)
            yield [f"{prompt.replace('_', '-')}, {kind}", *rates]


def loop(result: Any) -> Rows:
    yield ["texts", "drafts", "the loop's own time for a round", "for each text"]
    for one in result["host"]:
        taken = one["seconds_per_round"]
        yield [str(one["batch"]), one["drafts"], micro(taken), micro(taken / one["batch"])]


def linear(result: Any) -> Rows:
    n, k = result["shape"]
    kinds = result["seconds"]
    rows = list(next(iter(kinds.values())))
    yield [f"weights, {n} x {k}", *(f"{m} row{'s' if m != '1' else ''}" for m in rows)]
    for kind, times in kinds.items():
        one = times[rows[0]]
        yield [kind, *(f"{micro(times[m])} ({times[m] / one:.1f}x)" for m in rows)]


def dtypes(result: Any) -> Rows:
    yield ["model", "largest error", "RMS error", "KL", "same best token", "accepted as a draft"]
    for one in result["models"]:
        errors = (f"{one[name]:.2g}" for name in ("largest", "rms", "divergence"))
        yield [one["model"], *errors, f"{one['same']:.1%}", f"{one['accepted']:.3f}"]
