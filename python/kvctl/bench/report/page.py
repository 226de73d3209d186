"""A report as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ..result import Answer, Result
from .markdown import difference_table, summary_of, title_of
from .pictures import pictures_of, tree_picture
from .tables import Content, Table, machine_lines
from .timeline import round_trees, shown_answers, telling_round, timeline

_HERE = Path(__file__).resolve().parent
_LEGEND = """<span class="a1">Accepted</span> <span class="a2">drafts</span>
<span class="a3">are</span> <span class="a4">darker</span> the deeper they were;
<span class="bonus">underlined</span> tokens stand behind the accepted drafts of a round, and the
others are plain steps. A click on a token shows the tree of its round.</p>"""
_NO_PICTURES = "The pictures need matplotlib: pip install kvctl[plot]."


def to_html(result: Result) -> str:
    """Return the report as a page.

    Tables sort by a click on a head; a click on a token of a generation shows the tree of its
    round. Without matplotlib the page says so in place of the pictures.
    """
    return "\n".join(_parts(result)) + "\n"


def _parts(result: Result) -> Iterator[str]:
    content = Content(result)
    title = escape(title_of(result))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<link rel="icon" href="data:,">'  # or a browser asks the network for one
    yield f"<title>{title}</title>\n<style>\n{_read('page.css')}</style>\n</head>\n<body>"
    yield f"<h1>{title}</h1>\n<p>{escape(summary_of(result))}</p>"
    facts = "".join(f"<li>{escape(line)}</li>" for line in machine_lines(result))
    yield f'<ul class="machine">{facts}</ul>'
    for warning in content.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    for table in content.tables:
        yield _table(table)
    if result.differences:
        yield _table(difference_table(result))
    yield from _pictures(content)
    yield from _generations(result)
    yield f"<script>\n{_read('page.js')}</script>\n</body>\n</html>"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(column)}</button></th>'
        for column in table.columns
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td data-value="{escape(str(cell.value))}">{escape(cell.text)}</td>' for cell in row
        )
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table class="sorted">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


def _pictures(content: Content) -> Iterator[str]:
    try:
        found = pictures_of(content)
    except ImportError:
        yield f'<p class="warning">{_NO_PICTURES}</p>'
        return
    for title, svg in found.items():
        yield f"<figure><figcaption>{escape(title)}</figcaption>\n{svg}</figure>"


def _generations(result: Result) -> Iterator[str]:
    answers = shown_answers(result)
    if not answers:
        return
    asked = f"question {answers[0].question_id}, turn {answers[0].turn + 1}"
    yield f"<h2>One generation, token by token</h2>\n<p>{escape(asked)}. "
    yield _LEGEND
    for answer in answers:
        if result.configurations[answer.configuration].drafter is None:
            continue
        name = escape(result.names[answer.configuration])
        # "<" as an escape, so that no text of a token ends the script.
        trees = json.dumps(round_trees(result, answer)).replace("<", "\\u003c")
        seconds = f"{len(answer.tokens)} tokens in {answer.least_seconds:.2f} s"
        yield (
            f'<section class="generation"><h3>{name}: {seconds}</h3>\n'
            f'<div class="timeline">{timeline(result, answer)}</div>\n<pre class="tree"></pre>\n'
            f'<script type="application/json">{trees}</script>'
        )
        number = telling_round(answer)
        if number is not None:
            yield from _tree(result, answer, number)
        yield "</section>"


def _tree(result: Result, answer: Answer, number: int) -> Iterator[str]:
    try:
        svg = tree_picture(result, answer, number)
    except ImportError:
        return
    caption = f"The tree of round {number + 1}, its accepted path in bold"
    yield f"<figure><figcaption>{caption}</figcaption>\n{svg}</figure>"
