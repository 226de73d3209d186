"""Masked attention on a paged cache beside its peers, its limit, and variants of itself.

``sdpa``: beside torch's ``scaled_dot_product_attention`` under the same boolean mask, random among
the new tokens; torch has K and V contiguous, kvctl finds them in pages and appends the new tokens'
K and V as well. torch takes the faster of two forms: grouped heads (``enable_gqa``), and K and V
with their heads repeated beforehand. The limit is the larger of two times: reading the bytes of K
and V at the rate at which torch sums a large array in huge pages, and doing the operations at the
rate of torch's best matrix product. Both rates are measured in turns with the rest, since other
users of the machine slow all of them down.

``tvm``: beside TVM's own cache with the CPU kernels that it generates for token trees. Each runs in
its own process, with the same number of threads. The past of TVM's cache is all zeros.

``shared``: one new token for each of eight forks of one sequence, and for eight sequences that
share nothing.

``observer``: attention with and without sums of what it gave to each token.

The peers take turns in every round, with a pause in between, and each thread count has its own
process. Prints one table for each part and thread count. Writes the least and the median time of a
call to one JSON, in which only the parts that ran are replaced.

    python bench_attention.py [--parts sdpa tvm] [--threads 1 2] [--rounds 7] [--json out.json]
    python bench_attention.py --parts sdpa --heads 9 --new 8 16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import numpy as np

from attention_parts import (
    SHAPES,
    measure_observer,
    measure_shared,
    measure_trees,
    time_calls,
)

NEW_TOKENS = [1, 8, 16, 64]
KV_LENS = [512, 2048, 8192]


def machine() -> dict[str, str]:
    """Return the machine that the times come from."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "machine": platform.machine()}


READ_BYTES, PRODUCT_OPERATIONS = 1 << 28, 2 * 1024**3


def limit_calls() -> list[Any]:
    """Return a function that reads READ_BYTES, and one that does PRODUCT_OPERATIONS."""
    import torch

    memory = mmap.mmap(-1, READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # as the cache does for its pages
    large, square = torch.frombuffer(memory, dtype=torch.float32), torch.randn(1024, 1024)
    large.fill_(1)
    return [large.sum, lambda: square @ square]


def kvctl_call(
    shape: tuple[int, int, int], new: int, kv_len: int, mask: Any, window: int, page_size: int
) -> Any:
    """Return a function that attends, on a cache that it keeps alive."""
    import kvctl
    from kvctl._ffi.convert import to_tensor

    qo, kv, dim = shape
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=qo,
        num_kv_heads=kv,
        head_dim=dim,
        max_total_tokens=kv_len + 64,
        page_size=page_size,
        prefill_chunk_size=kv_len,
    )
    cache.add_sequence(0)
    rng = np.random.default_rng(0)
    past = rng.standard_normal((kv_len - new, qo + 2 * kv, dim), np.float32)
    cache.begin_forward([0], [kv_len - new], mask=kvctl.Mask.window(1))  # only to fill it
    cache.attention(0, past)
    cache.end_forward()
    chosen = kvctl.Mask.window(window) if window else kvctl.Mask.dense(mask)
    cache.begin_forward([0], [new], mask=chosen)
    qkv = to_tensor(rng.standard_normal((new, qo + 2 * kv, dim), np.float32))
    out = cache.attention(0, qkv)
    return lambda: cache.attention(0, qkv, out)


def torch_calls(shape: tuple[int, int, int], new: int, kv_len: int, mask: Any) -> list[Any]:
    """Return the two forms of torch's function."""
    import torch

    qo, kv, dim = shape
    attend = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(1, qo, new, dim)
    k, v = torch.randn(1, kv, kv_len, dim), torch.randn(1, kv, kv_len, dim)
    all_k, all_v = (x.repeat_interleave(qo // kv, 1).contiguous() for x in (k, v))
    seen = np.hstack([np.ones((new, kv_len - new), bool), mask])
    visible = torch.from_numpy(seen)[None, None]
    return [
        lambda: attend(q, k, v, attn_mask=visible, enable_gqa=True),
        lambda: attend(q, all_k, all_v, attn_mask=visible),
    ]


def measure(rounds: int, page_size: int, heads: list[int], news: list[int]) -> dict[str, Any]:
    """Measure the shapes with these query heads and new tokens in this process."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    limits = limit_calls()
    rows: list[dict[str, Any]] = []
    for shape in (shape for shape in SHAPES if shape[0] in heads):
        for kv_len in KV_LENS:
            for new in news:
                mask = np.random.default_rng(new).random((new, new)) < 0.5
                np.fill_diagonal(mask, True)
                calls = [*limits, kvctl_call(shape, new, kv_len, mask, 0, page_size)]
                calls += torch_calls(shape, new, kv_len, mask)
                if kv_len == max(KV_LENS):
                    calls.append(kvctl_call(shape, new, kv_len, mask, 512, page_size))
                turns: list[list[list[float]]] = [[] for _ in calls]
                for _ in range(rounds):
                    for call, times in zip(calls, turns, strict=True):
                        sleep(0.01)
                        times.append(time_calls(call))
                flat = [[t for turn in times for t in turn] for times in turns]
                least = [min(times) for times in flat]
                middle = [median(times) for times in flat]
                bandwidth, rate = READ_BYTES / least[0], PRODUCT_OPERATIONS / least[1]
                qo, kv, dim = shape
                operations = 4 * new * qo * dim * kv_len
                rows.append(
                    {
                        "shape": shape,
                        "new": new,
                        "kv_len": kv_len,
                        "kvctl": [least[2], middle[2]],
                        "torch": [min(least[3:5]), min(middle[3:5])],
                        "window_512": [least[5], middle[5]] if len(calls) > 5 else None,
                        "bandwidth": bandwidth,
                        "rate": rate,
                        "limit": max(8 * kv * dim * kv_len / bandwidth, operations / rate),
                    }
                )
    best = {name: max(row[name] for row in rows) for name in ("bandwidth", "rate")}
    return {**best, "torch": torch.__version__, "page_size": page_size, "rows": rows}


def run_part(part: str, options: argparse.Namespace) -> Any:
    """Measure one part in this process."""
    rounds: int = options.rounds
    if part == "sdpa":
        return measure(rounds, options.page_size, options.heads, options.new)
    if part in ("tree-kvctl", "tree-tvm"):
        return measure_trees(rounds, tvm=part == "tree-tvm")
    return measure_shared(rounds) if part == "shared" else measure_observer(rounds)


def worker(part: str, threads: int, arguments: list[str]) -> Any:
    """Measure one part in a process of its own."""
    number = str(threads)
    done = subprocess.run(
        [sys.executable, __file__, "--worker", part, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": number, "TVM_NUM_THREADS": number},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def name_of(row: dict[str, Any]) -> str:
    """Return the heads of a row."""
    qo, kv, dim = row["shape"]
    return f"{qo:2}/{kv} x {dim:3}"


def show_rest(part: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """Print the table of a part that compares two things: medians."""
    first, second = {
        "tvm": ("kvctl", "tvm"),
        "shared": ("forks", "separate"),
        "observer": ("plain", "observed"),
    }[part]
    print(f"\n{part}, {threads} threads; microseconds (medians)")
    print(f"heads      new {first:>10} {second:>10}   ratio")
    for row in rows:
        a, b = row[first][1], row[second][1]
        print(f"{name_of(row)} {row.get('new', 1):3} {a * 1e6:10.1f} {b * 1e6:10.1f} {b / a:6.2f}x")


def show(threads: int, result: dict[str, Any]) -> None:
    """Print one table: least times, and ratios of medians."""
    print(
        f"\n{threads} threads; {result['bandwidth'] / 1e9:.1f} GB/s, "
        f"{result['rate'] / 1e9:.1f} GFLOP/s; microseconds (least)"
    )
    print("heads      new     kv     kvctl     torch  faster  (medians)  of limit  window 512")
    ratios = []
    for row in result["rows"]:
        ours, theirs = row["kvctl"], row["torch"]
        ratios.append(theirs[1] / ours[1])
        window = row["window_512"]
        print(
            f"{name_of(row)} {row['new']:3} {row['kv_len']:6} {ours[0] * 1e6:9.1f} "
            f"{theirs[0] * 1e6:9.1f} {theirs[0] / ours[0]:6.2f}x {ratios[-1]:9.2f}x "
            f"{row['limit'] / ours[0]:8.0%}"
            + (f"    1/{ours[0] / window[0]:.1f}" if window else "")
        )
    print(f"geometric mean of the medians' ratios: {np.exp(np.mean(np.log(ratios))):.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=["sdpa", "tvm", "shared", "observer"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--page-size", type=int, default=16, help="tokens in a page, for sdpa")
    heads = [shape[0] for shape in SHAPES]
    parser.add_argument(
        "--heads", type=int, nargs="+", default=heads, choices=heads, help="query heads, for sdpa"
    )
    parser.add_argument(
        "--new", type=int, nargs="+", default=NEW_TOKENS, help="new tokens, for sdpa"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        json.dump(run_part(options.worker, options), sys.stdout)
        return
    arguments = ["--rounds", str(options.rounds), "--page-size", str(options.page_size)]
    arguments += ["--heads", *map(str, options.heads), "--new", *map(str, options.new)]
    results: dict[str, Any] = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    results["machine"] = machine()
    if "sdpa" in options.parts and importlib.util.find_spec("torch") is None:
        print("torch is not installed: the part sdpa is skipped")
        options.parts.remove("sdpa")
    for part in options.parts:
        for threads in options.threads:
            if part == "tvm":
                rows, theirs = (
                    worker(one, threads, arguments) for one in ("tree-kvctl", "tree-tvm")
                )
                for row, other in zip(rows, theirs, strict=True):
                    row["kvctl"], row["tvm"] = row.pop("time"), other["time"]
            else:
                rows = worker(part, threads, arguments)
            results.setdefault(part, {})[str(threads)] = rows
            if part == "sdpa":
                show(threads, rows)
            else:
                show_rest(part, threads, rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
