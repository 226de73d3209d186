"""The script of a report's page, in an engine without a browser."""

import json

import pytest

from kvctl.bench.report import to_html
from page_in_v8 import page_in_v8

py_mini_racer = pytest.importorskip("py_mini_racer", reason="needs mini-racer")


@pytest.fixture
def engine():
    return py_mini_racer.MiniRacer()


def column(engine, table, number):
    rows = f"tables[{table}].tBodies[0].rows"
    return json.loads(
        engine.eval(f"JSON.stringify({rows}.map((row) => row.cells[{number}].dataset.value))")
    )


def click_head(engine, table, number):
    head = f"tables[{table}].tHead.rows[0].cells[{number}]"
    engine.eval(f"{head}.parts.button.click()")
    return engine.eval(f'{head}.getAttribute("aria-sort")')


def test_every_column_of_every_table_sorts(engine, result):
    page = page_in_v8(engine, to_html(result))
    assert len(page.tables) > 2
    for table, content in enumerate(page.tables):
        for number in range(len(content["heads"])):
            before = [row[number] for row in content["rows"]]
            try:
                expected = sorted(before, key=float)
            except ValueError:  # names
                expected = sorted(before, key=str.casefold)
            assert click_head(engine, table, number) == "descending"
            assert column(engine, table, number) == expected[::-1]
            assert click_head(engine, table, number) == "ascending"
            assert column(engine, table, number) == expected
        marks = f"tables[{table}].tHead.rows[0].cells.filter((h) => h.getAttribute('aria-sort'))"
        assert engine.eval(f"{marks}.length") == 1


def test_a_click_on_a_token_shows_the_tree_of_its_round(engine, result):
    page = page_in_v8(engine, to_html(result))
    assert page.sections
    for number, section in enumerate(page.sections):
        trees = json.loads(section["script"])
        for place, span in enumerate(section["spans"]):
            engine.eval(f'sections[{number}].all[".timeline span"][{place}].click()')
            shown = engine.eval(f'sections[{number}].parts["pre.tree"].textContent')
            about, _, tree = shown.partition("\n")
            assert about == span["title"]
            assert tree == (trees[int(span["round"]) - 1] if span["round"] != "0" else "")
            chosen = engine.eval(
                f'sections[{number}].all[".timeline span"].filter((s) => s.chosen.size).length'
            )
            assert chosen == sum(one["round"] == span["round"] for one in section["spans"])
