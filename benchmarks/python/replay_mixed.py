"""What a head, suffixes and both together gain, in times that a table says: a deterministic replay.

    python replay_mixed.py MODEL HEAD --questions short.jsonl --record answers.npz --orders 5

The model answers the questions once, and its hidden states are recorded. Then the drafters run on
these answers, the head in earnest, while a clock is moved by what each forward costs in plain
steps. So the machine's load changes nothing, and one order of the questions can be compared with
another: each is answered by new drafters. Printed are speed-ups by category, prefill included, and
how far both together are from the better of the two, with a percentile bootstrap over questions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kvctl
from kvctl.bench.conversation import answer_text, encode_turn
from kvctl.bench.questions import MAX_QUESTIONS, read_questions
from kvctl.draft import Drafter, HeadDrafter, SuffixDrafter
from kvctl.engine.costs import forget_costs, new_cost, with_cost
from kvctl.heads import load
from kvctl.verification import Sampling

# In plain steps of SmolLM2-135M in float32 on two cores (AVX-512, AMX), with the head in 8 bits: a
# round of so many rows; a token of a prompt; a head's catching up and a level of its tree, and an
# entry beyond four of either; a suffix drafter's round. All are exact sums of powers of two below,
# so that no rounding depends on what came before.
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 24, 32)
COSTS = (1.0, 1.13, 1.2, 1.27, 1.33, 1.37, 1.4, 1.43, 1.47, 1.66, 1.86, 2.24)
PROMPT_TOKEN, CATCH_UP, LEVEL, ENTRY, SUFFIX = 0.048, 0.095, 0.063, 0.01, 0.019
CLOCKS = ("engine.rounds", "engine.drafting", "draft.model.growing_drafter")
KINDS = ("plain", "head", "suffix", "both")


def exact(steps: float) -> float:
    return round(steps * 4096) / 4096


def cost(rows: int) -> float:
    return exact(float(np.interp(rows, ROWS, COSTS)))


class Clock:
    """Plain steps that forwards have taken."""

    def __init__(self) -> None:
        self.now = 0.0
        for name in CLOCKS:
            module: Any = importlib.import_module(f"kvctl.{name}")
            module.perf_counter = lambda: self.now

    def take(self, steps: float) -> None:
        self.now += exact(steps)


class Lengths:
    """A cache that counts tokens."""

    num_available_tokens = 1 << 20

    def __init__(self) -> None:
        self._lengths: dict[int, int] = {}

    def add_sequence(self, seq_id: int) -> None:
        self._lengths[seq_id] = 0

    def remove_sequence(self, seq_id: int) -> None:
        del self._lengths[seq_id]

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._lengths

    def sequence_length(self, seq_id: int) -> int:
        return self._lengths[seq_id]

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        for seq_id, nodes in zip(seq_ids, kept, strict=True):
            self._lengths[seq_id] += len(list(nodes))


class Answered:
    """A runner that knows one text, and the hidden states of its tokens."""

    context_window_size = sliding_window_size = None
    prefill_chunk_size = 512
    abilities = frozenset(("hidden",))

    def __init__(self, clock: Clock, vocab_size: int) -> None:
        self.cache, self.vocab_size = Lengths(), vocab_size
        self.text: list[int] = []
        self.hidden: npt.NDArray[Any] = np.empty(0)
        self._clock = clock

    def prefill(self, seq_ids: Sequence[int], tokens: Any, hidden: Any = None) -> Any:
        [seq_id], [new] = seq_ids, tokens
        begin = self.cache.sequence_length(seq_id)
        self.cache.commit([seq_id], [new])
        self._clock.take(PROMPT_TOKEN * len(new) if len(new) > 1 else 1.0)
        logits = self._logits([begin + len(new)])
        return logits if hidden is None else (logits, self.hidden[begin : begin + len(new)])

    def decode(self, seq_ids: Sequence[int], tokens: Sequence[int]) -> Any:
        return self.prefill(seq_ids, [tokens])

    def verify(self, seq_ids: Sequence[int], trees: Any, hidden: Any = None) -> Any:
        [seq_id], [tree] = seq_ids, trees
        tokens, parents, at = tree.tokens.tolist(), tree.parents.tolist(), [-1] * len(tree)
        at[0] = self.cache.sequence_length(seq_id)
        for node in range(1, len(tree)):
            place = at[parents[node]] + 1
            if at[parents[node]] >= 0 and self.text[place : place + 1] == [tokens[node]]:
                at[node] = place
        self._clock.take(cost(len(tree)))
        logits = self._logits([place + 1 if place >= 0 else len(self.text) for place in at])
        return logits if hidden is None else (logits, self.hidden[at])

    def _logits(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = np.zeros((len(places), self.vocab_size), np.float32)
        for row, place in enumerate(places):
            logits[row, self.text[place] if place < len(self.text) else 0] = 1e3
        return logits


class Timed:
    """A head whose forwards move the clock."""

    def __init__(self, head: Any, clock: Clock) -> None:
        self._head, self._clock = head, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def forward(self, seq_ids: Any, tokens: Any, features: Any, *, mask: Any = None) -> Any:
        entries = max(sum(map(len, tokens)) - 4, 0)
        self._clock.take((CATCH_UP if mask is None else LEVEL) + ENTRY * entries)
        return self._head.forward(seq_ids, tokens, features, mask=mask)


class TimedSuffixes(SuffixDrafter):
    """Suffixes, which take a little time too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def propose(self, requests: Any, budget: Any) -> Any:
        self._clock.take(SUFFIX)
        return super().propose(requests, budget)


def record(options: argparse.Namespace, layers: Sequence[int]) -> None:
    """Let the model answer everything, and write the texts with their hidden states."""
    runner: Any = kvctl.ModelRunner.load(options.model)
    sampling = Sampling(temperature=options.temperature) if options.temperature else None
    turns: list[dict[str, Any]] = []
    arrays = {}
    for place, question in enumerate(read_questions(options.questions)):
        said: list[str] = []
        for turn in range(len(question.turns)):
            prompt = encode_turn(runner.text, question, said)
            answer = kvctl.generate(
                runner,
                prompt,
                max_new_tokens=options.max_new_tokens,
                sampling=sampling,
                request_id=place + turn * MAX_QUESTIONS,
                stop=runner.text.stop_tokens,
                stop_when=runner.text.stop_check(),
            )
            said.append(answer_text(runner.text, answer.tokens))
            runner.cache.add_sequence(0)
            _, hidden = runner.prefill([0], [[*prompt, *answer.tokens]], hidden=layers)
            arrays[f"hidden{len(turns)}"] = np.array(np.from_dlpack(hidden))
            runner.cache.remove_sequence(0)
            turns.append(
                {"question": place, "category": question.category}
                | {"prompt": list(map(int, prompt)), "answer": list(map(int, answer.tokens))}
            )
    np.savez(options.record, turns=json.dumps(turns), vocab_size=runner.vocab_size, **arrays)


class Replay:
    """Runs drafters over recorded answers."""

    def __init__(self, path: Path, head: Any) -> None:
        recorded = np.load(path)
        self.turns = json.loads(str(recorded["turns"]))
        self._hidden = [recorded[f"hidden{i}"] for i in range(len(self.turns))]
        self._clock = Clock()
        self._runner: Any = Answered(self._clock, int(recorded["vocab_size"]))
        self._head: Any = Timed(head, self._clock)

    def seconds(self, kind: str, order: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return what each turn takes in plain steps, answered in an order by a new drafter."""
        drafter: Drafter | None = None
        if kind in ("head", "both"):
            drafter = HeadDrafter(self._head, branching=4, beam=4, nodes=8)
        if kind in ("suffix", "both"):
            suffix = TimedSuffixes(self._clock)
            drafter = suffix if drafter is None else drafter | suffix
        known = new_cost()
        known.calibrate(cost)
        times = np.zeros(len(self.turns))
        forget_costs(self._runner)
        for i in order:
            turn, begin = self.turns[i], self._clock.now
            self._runner.text = turn["prompt"] + turn["answer"]
            self._runner.hidden = self._hidden[i]
            with with_cost(self._runner, known):
                text = kvctl.generate(
                    self._runner,
                    turn["prompt"],
                    max_new_tokens=len(turn["answer"]),
                    drafter=drafter,
                )
            assert text.tokens == turn["answer"]
            times[i] = self._clock.now - begin
        return times

    def orders(self, count: int) -> list[list[int]]:
        """Return the file's order, orders of the categories and of the questions by turns."""
        orders = [list(range(len(self.turns)))]
        for seed in range(1, count):
            name = "question" if seed % 2 else "category"
            groups = list(dict.fromkeys(turn[name] for turn in self.turns))
            random.Random(seed).shuffle(groups)
            orders.append([i for one in groups for i in orders[0] if self.turns[i][name] == one])
        return orders


def report(replay: Replay, times: dict[str, npt.NDArray[np.float64]]) -> dict[str, Any]:
    """Print and return what each kind (orders, turns) gains in each category."""
    categories = defaultdict(list)
    for i, turn in enumerate(replay.turns):
        categories[turn["category"]].append(i)
    categories["overall"] = list(range(len(replay.turns)))
    rng, found = np.random.default_rng(0), {}
    print(f"{'':16s}{'head':>8s}{'suffix':>8s}{'both':>8s}   both / better, each order; interval")
    for category, mine in categories.items():
        totals = {kind: times[kind][:, mine].sum(axis=1) for kind in KINDS}
        gains = {kind: totals["plain"].sum() / totals[kind].sum() for kind in KINDS[1:]}
        each = np.minimum(totals["head"], totals["suffix"]) / totals["both"] - 1.0
        better = "head" if gains["head"] >= gains["suffix"] else "suffix"
        sums = {kind: times[kind][:, mine].sum(axis=0) for kind in (better, "both")}
        drawn = rng.integers(0, len(mine), (2000, len(mine)))
        ratio = sums[better][drawn].sum(axis=1) / sums["both"][drawn].sum(axis=1) - 1.0
        low, high = np.quantile(ratio, [0.025, 0.975])
        found[category] = {"speedups": gains, "each": each.tolist(), "interval": [low, high]}
        print(
            f"{category:16s}"
            + "".join(f"{gain:7.2f}x" for gain in gains.values())
            + "   "
            + " ".join(f"{one:+.1%}" for one in each)
            + f"  [{low:+.1%}, {high:+.1%}]"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a compiled model that gives the head's hidden states")
    parser.add_argument("head", help="a compiled EAGLE head")
    parser.add_argument("--questions", required=True, help="as kvctl bench spec takes them")
    parser.add_argument("--record", type=Path, required=True, help="answers; made if not there")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--orders", type=int, default=5, help="orders of the questions")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    head = load(options.head)
    if not options.record.exists():
        record(options, head.hidden_layers)
    replay = Replay(options.record, head)
    orders = replay.orders(options.orders)
    times = {kind: np.array([replay.seconds(kind, one) for one in orders]) for kind in KINDS}
    found = report(replay, times)
    if options.json:
        options.json.write_text(json.dumps({"orders": orders, "categories": found}, indent=1))


if __name__ == "__main__":
    main()
