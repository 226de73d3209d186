"""The referee's table: all rules, all shapes, the same models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .entries import ABSENT, ENTRIES, Entry
from .judge import SHAPES, Verdict, judge
from .models import RandomModel


@dataclass(frozen=True)
class Row:
    """A rule and what it did on each shape that it takes."""

    entry: Entry
    verdicts: dict[str, Verdict | None]

    @property
    def lossless(self) -> bool:
        """Whether it was on every shape."""
        return all(one.lossless for one in self.verdicts.values() if one is not None)


def rows_of(
    models: Sequence[RandomModel],
    entries: Sequence[Entry] = tuple(ENTRIES),
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Judge every entry on every shape; without SciPy the linear program is left out."""
    rows = []
    for entry in entries:
        verdicts: dict[str, Verdict | None] = {}
        for name, parents in SHAPES.items():
            skipped = entry.chains_only and len(set(parents)) < len(parents)
            try:
                verdict = None if skipped else judge(entry.rule, entry.how, parents, models)
            except ModuleNotFoundError:
                verdict = None
            verdicts[name] = verdict
            advance()
        rows.append(Row(entry, verdicts))
    return rows


def to_markdown(rows: Sequence[Row], models: Sequence[RandomModel]) -> str:
    """Return the table, the biased rules with their counterexamples, and what is absent."""
    return "\n".join(_lines(rows, models)) + "\n"


def _lines(rows: Sequence[Row], models: Sequence[RandomModel]) -> Iterator[str]:
    one = models[0]
    yield (
        f"Exact mean tokens of a round over {len(models)} pairs of random models with "
        f"{one.vocab} tokens (`kvctl.referee.RandomModel`, agreement {one.agreement:g}, seeds "
        f"{one.seed} to {models[-1].seed}): every draft and every decision is enumerated, so there "
        "is no error of sampling. A rule is lossless if the emitted text has the target's "
        "distribution."
    )
    yield ""
    yield "| rule | source | " + " | ".join(SHAPES) + " | lossless |"
    yield "| --- | --- | " + " | ".join("--:" for _ in SHAPES) + " | --- |"
    for row in rows:
        cells = ["-" if v is None else f"{v.mean_emitted:.4f}" for v in row.verdicts.values()]
        lossless = "yes" if row.lossless else "**no**"
        yield f"| {row.entry.name} | {row.entry.source} | {' | '.join(cells)} | {lossless} |"
    yield ""
    for row in rows:
        if row.lossless and not row.entry.note:
            continue
        text = [row.entry.note] if row.entry.note else []
        biased = [(v.max_difference, s, v) for s, v in row.verdicts.items() if v and not v.lossless]
        if biased:
            _, shape, verdict = max(biased, key=lambda one: one[0])
            text.append(f"Counterexample ({shape}), {verdict.counterexample}.")
        yield f"- **{row.entry.name}.** {' '.join(text)}"
    for name, why in ABSENT.items():
        yield f"- **{name}** is not in the table: {why}."
