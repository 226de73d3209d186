"""Rolling a recurrent state back: snapshots beside replay, by how many drafts are accepted.

Compiles gated delta nets of a small and a large state and a hybrid, each twice: once so that
verification hands over the state after every token (snapshots), once so that it does not (replay).
A round verifies a chain of the last token and some drafts, commits those accepted, and with replay
runs the kept tokens again. Rounds of both ways take turns. Prints the tables and writes one JSON.

    python benchmarks/python/bench_recurrent.py [--json result.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import tvm_ffi

import kvctl
from kvctl.models.build.recurrent_library import compile_recurrent
from kvctl.models.graph.gated_delta_net import GatedDeltaNetConfig
from kvctl.models.graph.hybrid import HybridConfig

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_heads": 8,
    "key_dim": 64,
    "value_dim": 64,
    "vocab_size": 4096,
}
LARGE_STATE = {"hidden_size": 256, "intermediate_size": 512, "key_dim": 128, "value_dim": 128}
ATTENTION = {
    "attention_every": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
PROMPT = 64


MODELS: dict[str, GatedDeltaNetConfig] = {
    "gated delta net": GatedDeltaNetConfig(**SHAPE),
    "gated delta net, large state": GatedDeltaNetConfig(**{**SHAPE, **LARGE_STATE}),
    "hybrid": HybridConfig(**SHAPE, **ATTENTION),
}


def load(kind: str, *, steps: bool, directory: Path) -> kvctl.ModelRunner:
    name = directory / f"{kind}-{'snapshot' if steps else 'replay'}"
    compile_recurrent(MODELS[kind], name, emit_steps=steps)
    runner = kvctl.ModelRunner.load(name, max_total_tokens=512, max_history=32, max_sequences=1)
    return runner


def one_round(runner: kvctl.ModelRunner, chain: list[int], kept: int) -> dict[str, float]:
    """Return the seconds of a round's parts; afterwards the sequence is rolled back."""
    cache = runner.cache
    point = cache.checkpoint(0)
    tree = kvctl.TokenTree.chain(chain)
    begin = perf_counter()
    runner.verify([0], [tree])
    verified = perf_counter()
    held = cache.state.max_states - cache.state.num_free_states
    cache.commit([0], [range(kept)])
    end = perf_counter()
    cache.rollback(0, point)
    return {"verify": verified - begin, "commit": end - verified, "held": held}


def measure(
    runners: dict[str, kvctl.ModelRunner], drafts: int, repeat: int
) -> dict[str, list[dict[str, Any]]]:
    """Return rounds by way; entry k - 1 keeps k tokens of drafts + 1."""
    rng = np.random.default_rng(0)
    samples: dict[str, list[list[dict[str, float]]]] = {
        way: [[] for _ in range(drafts + 1)] for way in runners
    }
    for trial in range(repeat + 1):
        chain = rng.integers(0, SHAPE["vocab_size"], drafts + 1).tolist()
        for kept in range(1, drafts + 2):
            for way, runner in runners.items():
                sample = one_round(runner, chain, kept)
                if trial > 0:  # the first one warms up
                    samples[way][kept - 1].append(sample)
    return {way: [summary(one) for one in by_kept] for way, by_kept in samples.items()}


def summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians in milliseconds, and the quartiles of a round."""
    total = [1e3 * (sample["verify"] + sample["commit"]) for sample in samples]
    low, _, high = quantiles(total, n=4)
    return {
        "verify_ms": median(1e3 * sample["verify"] for sample in samples),
        "commit_ms": median(1e3 * sample["commit"] for sample in samples),
        "round_ms": median(total),
        "round_quartiles_ms": [low, high],
        "states_held": max(int(sample["held"]) for sample in samples),
    }


def describe_machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "linear": tvm_ffi.get_global_func("kvctl.model.backend")(),
        "kvctl": kvctl.__version__,
        "tvm": metadata.version("apache-tvm"),
    }


def print_table(kind: str, drafts: int, rounds: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n{kind}, {drafts} drafts: milliseconds of a round (verify + commit)")
    print("  kept   snapshot (commit)     replay (commit)   replay / snapshot   faster")
    for kept, (snapshot, replay) in enumerate(
        zip(rounds["snapshot"], rounds["replay"], strict=True), start=1
    ):
        ratio = replay["round_ms"] / snapshot["round_ms"]
        wins = "snapshot" if ratio > 1.05 else "replay" if ratio < 0.95 else "equal"
        print(
            f"  {kept:4d}   {snapshot['round_ms']:8.2f} ({snapshot['commit_ms']:6.3f})   "
            f"{replay['round_ms']:8.2f} ({replay['commit_ms']:8.3f})   {ratio:17.2f}   {wins}"
        )


def break_even(rounds: dict[str, list[dict[str, Any]]]) -> float:
    """Return the share of rounds with a rejection below which replay is the faster way.

    Replay saves what snapshots cost in every round, and pays a second forward where something is
    rejected.
    """
    saved = rounds["snapshot"][-1]["round_ms"] - rounds["replay"][-1]["round_ms"]
    paid = median(one["commit_ms"] for one in rounds["replay"][:-1])
    return min(max(saved / paid, 0.0), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drafts", type=int, nargs="+", default=[3, 7, 15])
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    options = parser.parse_args()

    result: dict[str, Any] = {"machine": describe_machine()}
    result["shapes"] = {kind: asdict(config) for kind, config in MODELS.items()}
    result["models"] = {}
    print(", ".join(f"{name}: {value}" for name, value in result["machine"].items()))
    with tempfile.TemporaryDirectory() as scratch:
        for kind in MODELS:
            runners = {
                way: load(kind, steps=way == "snapshot", directory=Path(scratch))
                for way in ("snapshot", "replay")
            }
            for runner in runners.values():
                runner.cache.add_sequence(0)
                runner.prefill([0], [np.arange(PROMPT)])
            state = runners["snapshot"].cache.state
            entry: dict[str, Any] = {"state_bytes": state.state_bytes, "rounds": {}}
            entry["break_even"] = {}
            print(f"\n{kind}: {state.state_bytes / 1e6:.2f} MB per kept state")
            for drafts in options.drafts:
                rounds = measure(runners, drafts, options.repeat)
                entry["rounds"][drafts] = rounds
                print_table(kind, drafts, rounds)
                entry["break_even"][drafts] = break_even(rounds)
                print(
                    "  replay is faster where fewer than "
                    f"{100 * break_even(rounds):.0f}% of the rounds reject a draft"
                )
                held = {way: rounds[way][0]["states_held"] for way in rounds}
                print(
                    f"  states held while verifying: snapshot {held['snapshot']} "
                    f"({held['snapshot'] * state.state_bytes / 1e6:.1f} MB), replay "
                    f"{held['replay']} ({held['replay'] * state.state_bytes / 1e6:.1f} MB)"
                )
            result["models"][kind] = entry
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
