"""Acceptance rules on the CPU: kvctl beside the same rule in torch and in NumPy.

    python bench_verify.py --json out.json [--quick] [--vocab ...] [--draft ...]

One call verifies a batch of chains. Peers take turns within each repetition. Before each turn there
is a pause, in which idle thread pools fall asleep, and a call that is not timed, which wakes the
peer's own pool, as a forward before verification does. "torch" is the faster of two ways to write
the rule: all rows at once, and position by position without rows that are never reached. The second
stops where kvctl stops, so that the work is equal.
"GB/s" is the bytes of the rows that the rule reached over the median time. "of roof" divides it by
the read bandwidth of as many threads over an array larger than the machine's caches, which small
batches that are still in the cache may exceed.

On a machine with other users, `--threads 1 --clock cpu` measures processor time of one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

import kvctl
from kvctl.draft import sample as draft_sample
from peers.rules import numpy_rule, torch_rule, torch_walk

RULES = ("greedy", "target_only", "token_wise", "block", "traversal", "coupled")
# The rule of a peer that emits the same distribution.
PEER_RULE = {"traversal": "block"}


class Case:
    """A batch of chains whose drafter agrees with the target about as often as a real one."""

    def __init__(self, batch: int, length: int, vocab: int) -> None:
        rng = np.random.default_rng(batch * 1000 + length)
        self.batch, self.length, self.vocab = batch, length, vocab
        rows = batch * (length + 1)
        self.logits = rng.standard_normal((rows, vocab), dtype=np.float32) * 2
        # A few tokens have most of the mass, as in language.
        top = rng.integers(0, vocab, (rows, 8))
        heights = np.linspace(18, 11, 8, dtype=np.float32)
        np.put_along_axis(self.logits, top, heights + rng.random((rows, 8), dtype=np.float32), 1)
        draft = self.logits + rng.standard_normal((rows, vocab), dtype=np.float32) * 0.5
        node = np.tile(np.arange(1, length + 2), batch)
        self.ids, self.roots = list(range(batch)), [7] * batch
        draw = draft_sample(
            draft,
            how="independent",
            request_ids=np.repeat(self.ids, length + 1),
            root_positions=7,
            first_nodes=node,
        )
        self.q = draw.probs
        tokens = draw.tokens.reshape(batch, length + 1)[:, :length].astype(np.int64)
        self.drafts = tokens
        self.trees = [kvctl.TokenTree.chain([0, *row]) for row in tokens]
        self.greedy_trees = [
            kvctl.TokenTree.chain([0, *row[:length]])
            for row in self.logits.argmax(axis=1).reshape(batch, length + 1)
        ]
        self.greedy_drafts = np.array([t.tokens[1:] for t in self.greedy_trees], np.int64)

    def ours(self, rule: str) -> Callable[[], kvctl.Verification]:
        greedy = rule == "greedy"
        drawn = "deterministic" if rule in ("greedy", "target_only", "coupled") else "independent"
        return lambda: kvctl.verify(
            self.logits,
            self.greedy_trees if greedy else self.trees,
            rule=rule,
            drawn=drawn,
            draft_probs=self.q if drawn == "independent" else None,
            request_ids=self.ids,
            root_positions=self.roots,
        )

    def bytes_needed(self, rule: str, result: kvctl.Verification) -> int:
        """Return the bytes of the rows that the rule must read."""
        reached = int((result.num_accepted + 1).sum())
        if rule in ("greedy", "target_only", "coupled"):
            rows = reached
        elif rule == "token_wise":
            rows = reached + int(np.minimum(result.num_accepted + 1, self.length).sum())
        else:
            rows = self.batch * (2 * self.length + 1)
        return rows * self.vocab * 4

    def peers(self, rule: str) -> dict[str, Callable[[], Any]]:
        own, rule = rule, PEER_RULE.get(rule, rule)
        drafts = self.greedy_drafts if rule == "greedy" else self.drafts
        shape = (self.batch, self.length + 1, self.vocab)
        logits, q = self.logits.reshape(shape), self.q.reshape(shape)[:, : self.length]
        rng = np.random.default_rng(0)
        calls: dict[str, Callable[[], Any]] = {
            "numpy": lambda: numpy_rule(rule, logits, q, drafts, rng)
        }
        if importlib.util.find_spec("torch"):
            import torch

            t = [torch.from_numpy(x) for x in (logits, q, drafts)]
            calls["torch_rows"] = lambda: torch_rule(rule, *t)
            if rule != "block":
                accepted = torch.from_numpy(self.ours(own)().num_accepted.astype(np.int64))
                continues = accepted[:, None] > torch.arange(self.length + 1)
                calls["torch_walk"] = lambda: torch_walk(rule, *t, continues)
        return calls


clock: Callable[[], float] = perf_counter


def seconds_of(call: Callable[[], Any]) -> float:
    sleep(0.01)
    call()
    begin = clock()
    call()
    return clock() - begin


def read_bandwidth() -> float:
    """Return bytes per second of the fastest way we know to read a large array once."""
    array = np.ones((1024, 1 << 16), np.float32)
    ways: list[Callable[[], Any]] = [array.max]
    if importlib.util.find_spec("torch"):
        import torch

        t = torch.from_numpy(array)
        ways += [t.sum, t.max, lambda: torch.mv(t, torch.ones(t.shape[1]))]
    return array.nbytes / min(min(seconds_of(way) for _ in range(5)) for way in ways)


def measure(case: Case, rule: str, repeats: int, slow_peers: bool, roof: float) -> dict[str, Any]:
    calls: dict[str, Callable[[], Any]] = {"kvctl": case.ours(rule)}
    peers = case.peers(rule)
    calls |= peers if slow_peers else {k: v for k, v in peers.items() if k != "numpy"}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name, call in calls.items():
            if i < 5 or sum(times[name]) < 1:  # long calls vary little
                times[name].append(seconds_of(call))
    ways = sorted((k for k in times if k.startswith("torch")), key=lambda k: median(times[k]))
    if ways:
        times = {k: v for k, v in times.items() if k not in ways} | {"torch": times[ways[0]]}
    result = calls["kvctl"]()
    needed = case.bytes_needed(rule, result)
    row: dict[str, Any] = {
        "rule": rule,
        "batch": case.batch,
        "draft": case.length,
        "vocab": case.vocab,
        "tokens_per_sequence": float(result.num_emitted.mean()),
        "gigabytes_needed": needed / 1e9,
        "roof_gb_s": roof / 1e9,
    }
    if ways:
        row["torch_way"] = ways[0]
    for name, seconds in times.items():
        row[name] = {"median_s": median(seconds), "best_s": min(seconds), "worst_s": max(seconds)}
    row["gb_s"] = needed / row["kvctl"]["median_s"] / 1e9
    row["of_roof"] = row["gb_s"] * 1e9 / roof
    for name in times.keys() - {"kvctl"}:
        row[f"times_{name}"] = row[name]["median_s"] / row["kvctl"]["median_s"]
    return row


def show(row: dict[str, Any]) -> None:
    def milliseconds(name: str) -> str:
        return f"{row[name]['median_s'] * 1e3:9.3f}" if name in row else "        -"

    def times(name: str) -> str:
        return f"{row[f'times_{name}']:6.1f}x" if f"times_{name}" in row else "      -"

    print(
        f"{row['rule']:<12}{row['batch']:>3}{row['draft']:>3}{row['vocab']:>8}"
        f"{row['tokens_per_sequence']:6.2f}  {milliseconds('kvctl')} {milliseconds('torch')} "
        f"{milliseconds('numpy')} {times('torch')} {times('numpy')} {row['gb_s']:7.1f} "
        f"{row['of_roof']:6.0%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 151936])
    parser.add_argument("--draft", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--append", action="store_true", help="keep the rows that the JSON has")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if int(os.environ.get("OMP_NUM_THREADS", 0)) != arguments.threads:
        # Read when OpenMP's library loads, which importing kvctl has done.
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    global clock
    clock = process_time if arguments.clock == "cpu" else perf_counter
    repeats = 5 if arguments.quick else 11
    print(
        "rule          B  n       V  tok/s     kvctl     torch     numpy   torch   numpy    GB/s"
        "   of roof"
    )
    rows = []
    roof = read_bandwidth()
    for vocab in arguments.vocab:
        for length in arguments.draft:
            for batch in (1, 8, 32):
                case = Case(batch, length, vocab)
                for rule in RULES:
                    slow = batch * vocab <= 32000 * 8
                    rows.append(measure(case, rule, repeats, slow, roof))
                    show(rows[-1])
    if arguments.json:
        if arguments.append and arguments.json.exists():
            rows = json.loads(arguments.json.read_text())["rows"] + rows
        versions = {"kvctl": kvctl.__version__, "numpy": np.__version__}
        if importlib.util.find_spec("torch"):
            import torch

            versions["torch"] = torch.__version__
        report = {
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cpus": len(os.sched_getaffinity(0)),
                "threads": arguments.threads,
                "clock": arguments.clock,
                "load": os.getloadavg()[0],
            },
            "versions": versions,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
