"""Print statistics and comparisons."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from ..bench.difference import first_difference

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.protocol import Runner
    from ..engine.stats import Statistics


def make_console() -> Console:
    """Return a console whose lines break between words on a terminal, and nowhere in a file."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(soft_wrap=not is_terminal, highlight=False)


def print_statistics(console: Console, stats: Statistics) -> None:
    """Print speed, acceptance, and the times of the parts."""
    rate = f"{stats.tokens_per_second:.1f}" if stats.rounds else "-"
    console.print(
        f"[bold]{rate} tokens/s[/]  {stats.new_tokens} tokens in {stats.rounds + 1} forwards; "
        f"prompt of {stats.prompt_tokens} in {stats.prefill_seconds:.2f} s"
    )
    if stats.speculative_rounds:
        # NaN: a position that was drafted and never reached.
        rates = [rate for rate in stats.acceptance_by_position if rate == rate]
        shares = " ".join(f"{rate:.0%}" for rate in rates)
        console.print(
            f"acceptance length {stats.mean_acceptance_length:.2f} in "
            f"{stats.speculative_rounds} speculative rounds; by position, if reached: {shares}"
        )
    times = [("draft", stats.draft_seconds), ("forward", stats.forward_seconds)]
    times += [("verify", stats.verify_seconds), ("rollback", stats.rollback_seconds)]
    parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in times)
    start = f"; drafter's start {_time(stats.start_seconds)}" if stats.start_seconds else ""
    console.print(f"time: {parts}{start}")


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def print_comparison(
    console: Console,
    runner: Runner,
    prompt: list[int],
    plain: Generation,
    speculative: Generation,
    *,
    greedy: bool,
) -> bool:
    """Print whether two generations are the same, and how much faster the second was.

    Returns
    -------
    bool
        Whether they are the same, up to a tie within float noise.
    """
    ratio = speculative.statistics.tokens_per_second / plain.statistics.tokens_per_second
    difference = first_difference(runner, prompt, plain.tokens, speculative.tokens)
    if difference is None:
        console.print(
            f"\n[bold green]The same {len(plain.tokens)} tokens[/], "
            f"[bold]{ratio:.2f}x as fast[/] as plain decoding, "
            "every cost of starting to draft included."
        )
        return True
    a, b = difference.tokens
    if greedy and difference.is_tie:
        console.print(
            f"\n[yellow]Token {difference.index} is {a} or {b}: a tie, their logits differ by "
            f"{difference.gap:.1e}.[/] {ratio:.2f}x as fast as plain decoding, "
            "every cost of starting to draft included."
        )
        return True
    console.print(
        f"\n[bold red]Token {difference.index} differs[/]: {a} plainly, {b} speculatively; "
        f"their logits differ by {difference.gap:.3g}."
    )
    return False
