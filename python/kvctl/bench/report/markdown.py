"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..figures import Figures
from ..result import Difference, Result
from ..settings import describe
from .tables import Cell, Content, Table, machine_lines


def to_markdown(
    result: Result, *, level: int = 1, title: str = "", figures: Sequence[Figures] = ()
) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    result
        What was measured.
    level
        Of the first heading.
    title
        Instead of the model's and the questions' names.
    figures
        Of the result, where it has no answers to compute them from.
    """
    content = Content(result, list(figures))
    head = "#" * level
    lines = [f"{head} {title or title_of(result)}", "", summary_of(result), ""]
    lines += [f"- {line}" for line in machine_lines(result)]
    if content.warnings:
        lines += ["", *(f"> {warning}  " for warning in content.warnings)]
    for table in content.tables:
        lines += ["", f"{head}# {table.title}", "", *table_lines(table)]
        if table.note:
            lines += ["", table.note]
    if result.differences:
        lines += ["", f"{head}# First differences", "", *_difference_lines(result)]
    return "\n".join(lines) + "\n"


def title_of(result: Result) -> str:
    """Return a report's title."""
    return f"{Path(result.model).name} on {result.questions['name']}"


def summary_of(result: Result) -> str:
    """Return what was measured, in a sentence."""
    return f"{result.questions['count']} questions, {describe(result.settings)}."


def table_lines(table: Table) -> Iterator[str]:
    """Yield the lines of a table."""
    yield _row(table.columns)
    yield _row(["---", *["--:"] * (len(table.columns) - 1)])
    for row in table.rows:
        yield _row([cell.text for cell in row])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def difference_table(result: Result) -> Table:
    """Return the texts that should be plain decoding's and are not."""

    def row(one: Difference) -> list[Cell]:
        name = result.names[one.configuration]
        texts = [repr(text)[:80] for text in (one.before, one.plain, one.drafted)]
        gap = Cell("-", -1.0) if one.gap is None else Cell(f"{one.gap:.1e}", one.gap)
        where = Cell(f"{one.question_id}, turn {one.turn + 1}", str(one.question_id))
        place = Cell(str(one.index), one.index)
        return [Cell(name, name), where, place, *(Cell(text, text) for text in texts), gap]

    columns = ["configuration", "question", "token", "after", "plain", "drafted", "logits apart"]
    return Table("First differences", columns, [row(one) for one in result.differences])


def _difference_lines(result: Result) -> Iterator[str]:
    yield from table_lines(difference_table(result))
