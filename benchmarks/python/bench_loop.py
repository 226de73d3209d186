"""The decoding loop: its own time on the host, batches beside single texts, drafts beside none.

Prints three tables and writes one JSON.

    python bench_loop.py [MODEL_DIR] --json out.json

The host's part is measured with a model that computes nothing, so it needs no MODEL_DIR. With one:
plain batches beside plain single texts, and lookup drafts beside plain decoding, in turns; ratios
take the least of each side. What the first text has to find out is in its time: nothing is
remembered from earlier runs. Eight copy-edits end where their texts do, and stand beside drafts
whose author knows the answer, which is the most that any drafter could bring; with their prefill
too. Texts of unequal lengths share fewer and fewer rounds, and some leave their source early; of
24 texts, eight at a time, the next takes the place of one that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np

import kvctl
from kvctl.bench.machine_state import describe_machine
from kvctl.draft import Budget, Draft, Drafter, LookupDrafter, Request, ScriptedDrafter
from kvctl.engine.stats import Statistics

PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"
VOCABULARY = 512
OPEN = [
    "Write a haiku about rollback.",
    "Why is the sky blue?",
    "Explain caching to a child.",
    "Name five rivers of Europe.",
    "Tell me a story about a fox.",
    "What is a B-tree?",
    "How do I boil an egg?",
    "Describe Paris in the rain.",
]


class StubCache:
    """A cache with room for anything, that keeps nothing."""

    num_available_tokens = 1 << 20

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def add_sequence(self, seq_id: int) -> None:
        self._ids.add(seq_id)

    def remove_sequence(self, seq_id: int) -> None:
        self._ids.remove(seq_id)

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._ids

    def commit(self, seq_ids: Sequence[int], kept: Any) -> None:
        pass


class StubRunner:
    """A model that computes nothing: each token is followed by the next. It times itself."""

    vocab_size = VOCABULARY
    prefill_chunk_size = 2048
    context_window_size = None
    sliding_window_size = None
    abilities: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.cache: Any = StubCache()
        self.seconds = 0.0
        self._logits = np.zeros((2048, VOCABULARY), np.float32)

    def _after(self, tokens: Any) -> Any:
        begin = process_time()
        logits = self._logits[: len(tokens)]
        logits[:] = 0
        logits[np.arange(len(tokens)), (np.asarray(tokens) + 1) % 37] = 1
        self.seconds += process_time() - begin
        return logits

    def prefill(self, seq_ids: Any, tokens: Any) -> Any:
        return self._after([one[-1] for one in tokens])

    def decode(self, seq_ids: Any, tokens: Any) -> Any:
        return self._after(tokens)

    def verify(self, seq_ids: Any, trees: Any) -> Any:
        return self._after(np.concatenate([tree.tokens for tree in trees]))


class FourAhead(Drafter):
    """Drafts four tokens, all of them right; costs next to nothing itself."""

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        drafts = []
        for request in requests:
            ahead = min(4, request.limit)
            chain = [(request.root + i) % 37 for i in range(ahead + 1)]
            drafts.append(Draft(kvctl.TokenTree.chain(chain)))
        return drafts


def measure_host(repeat: int) -> list[dict[str, Any]]:
    """Return the loop's own time per round, without the model's.

    It is the processor's time, which other processes disturb less than the clock's.
    """
    results = []
    for size in (1, 4, 16):
        for name, make in (("plain", None), ("four ahead", FourAhead), ("lookup", LookupDrafter)):
            least, rounds = float("inf"), 0.0
            for _ in range(repeat):
                runner: Any = StubRunner()
                prompts = [[i, 1, 2] for i in range(size)]
                drafter: Any = None if make is None else make()
                begin = process_time()
                texts = kvctl.generate(runner, prompts, max_new_tokens=300, drafter=drafter)
                seconds = process_time() - begin - runner.seconds
                rounds = sum(one.statistics.rounds for one in texts) / size
                least = min(least, seconds / rounds)
            results.append({"batch": size, "drafts": name, "seconds_per_round": least})
    return results


def merged(texts: Any) -> Statistics:
    """Return the statistics of one text or several."""
    return Statistics.merge(
        one.statistics for one in (texts if isinstance(texts, list) else [texts])
    )


def in_turns(kinds: dict[str, Callable[[], Any]], repeat: int) -> dict[str, dict[str, Any]]:
    """Run each kind in turns; return the most tokens per second and the seconds of each."""
    found: dict[str, list[Statistics]] = {name: [] for name in kinds}
    for _ in range(repeat):
        for name, run in kinds.items():
            sleep(0.05)
            found[name].append(merged(run()))
    return {
        name: {
            "tokens_per_second": max(one.tokens_per_second for one in runs),
            "runs": [one.tokens_per_second for one in runs],
            "with_prefill": max(_with_prefill(one) for one in runs),
            "tokens": runs[-1].new_tokens,
            "mean_acceptance_length": runs[-1].mean_acceptance_length,
        }
        for name, runs in found.items()
    }


def _with_prefill(one: Statistics) -> float:
    """Return tokens per second of a batch, its prefill counted."""
    decoded = one.new_tokens - one.texts
    return one.new_tokens / (decoded / one.tokens_per_second + one.prefill_seconds)


def measure_model(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what batches and drafts gain on a model."""
    text = kvctl.ModelRunner.load(model, max_sequences=1).text

    def load() -> Any:
        return kvctl.ModelRunner.load(model, max_sequences=8, max_total_tokens=8192)

    plain, lookup = load(), load()
    count = options.tokens
    prompts = [text.encode_chat(prompt) for prompt in OPEN]
    copies = [text.encode_chat((PROMPTS / f"{name}.txt").read_text().strip()) for name in COPY]
    kvctl.generate(plain, prompts[0], max_new_tokens=4)
    kvctl.generate(lookup, prompts[0], max_new_tokens=4)

    def run(
        runner: Any, prompt: Any, drafts: bool, answers: Any = None, **asked: Any
    ) -> Callable[[], Any]:
        def once() -> Any:
            drafter = (
                None if not drafts else ScriptedDrafter(answers) if answers else LookupDrafter()
            )
            options = {"max_new_tokens": count, "drafter": drafter, **asked}
            return kvctl.generate(runner, prompt, **options)

        return once

    batches = {"1": run(plain, prompts[0], False), "8": run(plain, prompts, False)}
    out: dict[str, Any] = {"batch": in_turns(batches, options.repeat), "drafts": {}, "copies": {}}
    cases = {"8 open": prompts}
    for name in options.prompts:
        cases[name] = text.encode_chat((PROMPTS / f"{name}.txt").read_text().strip())
    for name, prompt in cases.items():
        sides = {"plain": run(plain, prompt, False), "lookup": run(lookup, prompt, True)}
        out["drafts"][name] = in_turns(sides, options.repeat)
    ends = {"max_new_tokens": 2 * count, "stop": plain.stop_tokens}
    answers = [one.tokens for one in kvctl.generate(plain, copies, **ends)]
    known = load()
    for texts in options.copies:
        times = -(-texts // len(copies))
        many = (copies * times)[:texts]
        sides = {
            "plain": run(plain, many, False, **ends),
            "lookup": run(lookup, many, True, **ends),
            "answer known": run(known, many, True, (answers * times)[:texts], **ends),
        }
        out["copies"][str(texts)] = in_turns(sides, options.repeat)
    return out


COPY = ("copy_edit", "copy_repeat", "copy_names", "copy_rename")


def show(result: dict[str, Any]) -> None:
    print("\nThe loop's own time per round, drafter included and model left out (us)")
    for one in result["host"]:
        each = one["seconds_per_round"] / one["batch"]
        print(
            f"  batch {one['batch']:3}  {one['drafts']:12}{1e6 * one['seconds_per_round']:8.0f}"
            f"   per text{1e6 * each:8.1f}"
        )
    if "batch" not in result:
        return
    one, eight = (result["batch"][size]["tokens_per_second"] for size in ("1", "8"))
    print(f"\nPlain tokens/s: one text {one:.1f}, eight {eight:.1f}: {eight / one:.2f}x")
    print("\nTokens/s, the start included")
    for name, sides in result["drafts"].items():
        plain, lookup = (sides[side]["tokens_per_second"] for side in ("plain", "lookup"))
        print(
            f"  {name:16} plain {plain:7.1f}   lookup {lookup:7.1f}   {lookup / plain:.2f}x"
            f"   acceptance length {sides['lookup']['mean_acceptance_length']:.2f}"
        )
    for texts, sides in result["copies"].items():
        for what, title in (("tokens_per_second", "decoding"), ("with_prefill", "with prefill")):
            plain = sides["plain"][what]
            print(
                f"  {texts} copies, {title}: lookup {sides['lookup'][what] / plain:.2f}x of plain, "
                f"with the answer known {sides['answer known'][what] / plain:.2f}x"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="kvctl's model directory")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", nargs="*", default=["copy_edit", "copy_repeat", "open"])
    parser.add_argument("--copies", type=int, nargs="*", default=[8, 24])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KVCTL_CACHE_DIR"] = folder
        result = {**describe_machine(), "host": measure_host(options.repeat)}
        if options.model:
            result |= measure_model(options.model, options)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
