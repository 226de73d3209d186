"""The page and the picture of several measurements."""

from dataclasses import replace
from pathlib import Path

import pytest

from command_line import run
from fake_text import talking_runner
from kvctl.bench.figures import Interval, figures_from_json, figures_of
from kvctl.bench.report.results_page import Measured, results_page, speedup_picture
from kvctl.bench.report.tables import Content
from kvctl.cli.bench.spec import _drafters
from kvctl.draft import DRAFTERS


@pytest.fixture(scope="module")
def summaries(result, tmp_path_factory):
    """Two summaries: one greedy, and one that claims a temperature and loses somewhere."""
    directory = tmp_path_factory.mktemp("summaries")
    figures = figures_of(result)
    result.save(directory / "a.json", answers=False, figures=[one.to_json() for one in figures])
    changed = [
        replace(one, speedup=Interval(0.8, 0.7, 0.9)) if one.category == "qa" else one
        for one in figures
    ]
    hot = replace(result, settings=result.settings | {"temperature": 0.8})
    hot.save(directory / "b.json", answers=False, figures=[one.to_json() for one in changed])
    return [directory / "a.json", directory / "b.json"]


def same(one, other):
    return repr(one) == repr(other)  # NaN is not itself


def test_figures_come_back(result, summaries):
    figures = figures_of(result)
    assert same(figures_from_json([one.to_json() for one in figures], result), figures)
    measured = Measured(summaries[0])
    assert same(measured.figures, figures) and measured.result.answers == []
    assert Content(measured.result, measured.figures).tables == Content(result).tables
    with pytest.raises(ValueError, match="the figures is damaged"):
        figures_from_json([{"configuration": 0}], result)
    with pytest.raises(ValueError, match="a configuration that the result does not have"):
        figures_from_json([{**figures[0].to_json(), "configuration": 9}], result)


def test_the_page_says_where_speculation_loses(summaries):
    text = results_page([Measured(path) for path in summaries], "pictures/x.png")
    assert "![Speed-up by drafter](pictures/x.png)" in text
    assert "\n## Greedy\n" in text and "\n## Temperature 0.8\n" in text
    assert text.count("### Where speculation loses") == 2
    assert "- lookup, qa: 0.80x [0.70, 0.90]." in text


def test_the_command_writes_page_and_picture(summaries, tmp_path):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "results.md", tmp_path / "pictures" / "speedup.png"
    done = run("bench", "results", *summaries, "--output", page, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "(pictures/speedup.png)" in page.read_text()
    assert speedup_picture([Measured(summaries[0])]).startswith(b"\x89PNG")


def test_a_result_without_figures_is_refused(result, tmp_path):
    result.save(tmp_path / "x.json", answers=False)
    with pytest.raises(ValueError, match="has no figures"):
        Measured(tmp_path / "x.json")


def test_drafters_of_the_command_line():
    runner = talking_runner()
    assert _drafters(["lookup@traversal", "suffix", "suffix"], runner) == [
        ("lookup", "traversal"),
        ("suffix", ""),
    ]
    every = [name for name, _ in _drafters(["all"], runner)]
    assert "lookup" in every and set(every) <= {*DRAFTERS, "self:window=64,how=independent"}


def test_the_whole_command(smollm2, tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"turns": ["Say one, two, three."]}\n{"turns": ["Say it again."]}\n')
    done = run(
        *("bench", "spec", smollm2, "--questions", questions, "--output", tmp_path / "out"),
        *("--drafter", "lookup:length=2", "--drafter", "suffix", "--batch", 2, "-n", 8),
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"result.json", "summary.json", "report.html", "report.md", "answers"}
    assert "2 of 2" in done.stdout
    done = run("bench", "spec", smollm2, "--questions", questions, "--batch", 0)
    assert done.returncode == 1 and "--batch takes positive numbers, not 0" in done.stderr


def test_the_page_of_the_documentation_is_made_from_the_results():
    root = Path(__file__).resolve().parents[3]
    folder = root / "benchmarks" / "results" / "speculation"
    files = [folder / f"spec_{how}.json" for how in ("greedy", "sampled")]
    page = results_page([Measured(file) for file in files], "pictures/speedup.png")
    assert (root / "docs" / "results.md").read_text() == page
    assert (root / "docs" / "pictures" / "speedup.png").is_file()
