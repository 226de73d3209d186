"""Timings of a model on this machine: single steps and generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...draft import Drafter
    from ...engine.generation import Generation
    from ...engine.protocol import Runner

_SEQUENCE = 0


@dataclass(frozen=True)
class Timing:
    """Repeated timings in seconds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarize."""
        return cls(median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True)
class Steps:
    """What single forwards cost behind some context; the model alone, without verification."""

    context: int
    prefill: Timing
    decode: Timing
    verify: dict[int, Timing]


@dataclass(frozen=True)
class Speedup:
    """One prompt, generated plainly and speculatively in turns."""

    name: str
    prompt_tokens: int
    new_tokens: int
    same: bool
    plain: Timing
    speculative: Timing
    mean_acceptance_length: float
    tokens_per_round: float

    @property
    def ratio(self) -> float:
        """How much faster the speculative generation was; NaN where neither had a round."""
        if self.new_tokens < 2:
            return float("nan")
        return self.plain.median / self.speculative.median


def measure_steps(
    runner: Runner, *, rows: Sequence[int], context: int = 128, repeat: int = 9
) -> Steps:
    """Time prefill, decode, and the verification of chains, interleaved.

    Parameters
    ----------
    runner
        The model; its cache needs room for the context and the longest chain.
    rows
        Numbers of tokens to verify, the root included.
    context
        Tokens in the cache.
    repeat
        Timings of each, after a first one that is not counted.
    """
    from ...tree import TokenTree

    tokens = np.random.default_rng(0).integers(0, runner.vocab_size, context).tolist()
    trees = {n: TokenTree.chain(tokens[:n]) for n in rows}
    prefill: list[float] = []
    decode: list[float] = []
    verify: dict[int, list[float]] = {n: [] for n in rows}
    for _ in range(repeat + 1):
        runner.cache.add_sequence(_SEQUENCE)
        try:
            begin = perf_counter()
            runner.prefill([_SEQUENCE], [tokens])
            prefill.append(perf_counter() - begin)
            begin = perf_counter()
            runner.decode([_SEQUENCE], tokens[:1])
            decode.append(perf_counter() - begin)
            runner.cache.popn(_SEQUENCE, 1)
            for n, tree in trees.items():
                begin = perf_counter()
                runner.verify([_SEQUENCE], [tree])
                verify[n].append(perf_counter() - begin)
                runner.cache.abort([_SEQUENCE])
        finally:
            runner.cache.remove_sequence(_SEQUENCE)
    return Steps(
        context,
        Timing.of(prefill[1:]),
        Timing.of(decode[1:]),
        {n: Timing.of(seconds[1:]) for n, seconds in verify.items()},
    )


def measure_speedup(
    runner: Runner,
    name: str,
    prompt: Sequence[int],
    drafter: Drafter,
    *,
    new_tokens: int,
    stop_check: Callable[[], Callable[[int], bool]] | None = None,
    repeat: int = 3,
) -> Speedup:
    """Generate greedily, plainly and speculatively in turns; time everything behind the prefill.

    The first speculative generation starts the drafter; its start counts.

    `stop_check` makes what tells whether a token ends the text, new for each generation.
    """
    from ... import generate

    def run(drafter: Drafter | None) -> Generation:
        ends = stop_check() if stop_check is not None else None
        return generate(runner, prompt, max_new_tokens=new_tokens, stop_when=ends, drafter=drafter)

    plain, fast = [], []
    for _ in range(repeat):
        one, two = run(None), run(drafter)
        plain.append(one.statistics.decode_seconds)
        fast.append(two.statistics.start_seconds + two.statistics.decode_seconds)
    stats = two.statistics
    return Speedup(
        name,
        len(prompt),
        stats.new_tokens,
        one.tokens == two.tokens,
        Timing.of(plain),
        Timing.of(fast),
        stats.mean_acceptance_length,
        stats.tokens_per_round,
    )


def to_json(steps: Steps, speedups: Sequence[Speedup]) -> dict[str, Any]:
    """Return measurements as JSON values, seconds throughout; null where there is no number."""
    generation = [{**asdict(one), "ratio": one.ratio} for one in speedups]
    return {
        "steps": asdict(steps),
        "generation": [
            {key: None if value != value else value for key, value in one.items()}
            for one in generation
        ],
    }
