"""Lookup drafts beside plain decoding on every prompt of examples/prompts, the start included.

    python bench_prompts.py MODEL_DIR --json out.json

Prints a row for each prompt. The sides run in turns, and each row has the least time of each side.
Nothing is remembered: every drafted text begins on a runner whose costs are unknown. Seconds of
decoding are the clock's, and do not count the prefill; the processor's, which tell on a busy
machine, are those of the whole generation.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time, sleep
from typing import Any

import kvctl
from kvctl.bench.machine_state import describe_machine
from kvctl.draft import LookupDrafter
from kvctl.engine.costs import forget_costs

PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"


class Side:
    """One way of generating: its least times, and the text that it gives each time."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.last: Any = None

    def measure(self) -> None:
        """Run once more."""
        sleep(0.02)
        begin = process_time()
        self.last = self._run()
        self.processor.append(process_time() - begin)
        stats = self.last.statistics
        self.seconds.append((stats.new_tokens - 1) / stats.tokens_per_second)


def measure(runner: Any, prompt: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Return what drafts gain on a prompt."""
    asked = {"max_new_tokens": options.tokens, "stop": runner.stop_tokens}

    def drafted() -> Any:
        forget_costs(runner)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KVCTL_CACHE_DIR"] = folder
            return kvctl.generate(runner, prompt, drafter=LookupDrafter(), **asked)

    plain = Side(lambda: kvctl.generate(runner, prompt, **asked))
    lookup = Side(drafted)
    for _ in range(options.repeat):
        plain.measure()
        lookup.measure()
        assert lookup.last.tokens == plain.last.tokens
    stats = lookup.last.statistics
    return {
        "tokens": stats.new_tokens,
        "plain": {"seconds": plain.seconds, "processor": plain.processor},
        "lookup": {"seconds": lookup.seconds, "processor": lookup.processor},
        "speedup": min(plain.seconds) / min(lookup.seconds),
        "speedup_of_processor_time": min(plain.processor) / min(lookup.processor),
        "rounds": stats.rounds,
        "mean_acceptance_length": stats.mean_acceptance_length,
    }


def show(name: str, row: dict[str, Any]) -> None:
    plain, lookup = (row["tokens"] / min(row[side]["seconds"]) for side in ("plain", "lookup"))
    print(
        f"{name:17}{row['tokens']:5} tokens   plain {plain:6.1f}/s   lookup {lookup:6.1f}/s "
        f"{row['speedup']:6.2f}x   processor, with prefill {row['speedup_of_processor_time']:5.2f}x"
        f"   rounds {row['rounds']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="kvctl's model directory")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, default=128, help="at most, if nothing stops the text"
    )
    parser.add_argument("--prompts", nargs="*", help="names of prompts; by default all")
    options = parser.parse_args()
    runner: Any = kvctl.ModelRunner.load(options.model, max_sequences=1)
    rows = {}
    names = options.prompts or sorted(path.stem for path in PROMPTS.glob("*.txt"))
    kvctl.generate(runner, runner.text.encode_chat("Hello"), max_new_tokens=8)
    for name in names:
        prompt = runner.text.encode_chat((PROMPTS / f"{name}.txt").read_text().strip())
        rows[name] = measure(runner, prompt, options)
        show(name, rows[name])
    least = min(rows, key=lambda name: rows[name]["speedup"])
    print(f"least: {rows[least]['speedup']:.3f}x on {least}")
    if options.json:
        result = {**describe_machine(), "tokens": options.tokens, "prompts": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
