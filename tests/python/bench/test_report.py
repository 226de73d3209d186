"""The report, as Markdown and as a page: parsed always, and in a browser where there is one."""

import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kvctl.bench.report import page, to_html, to_markdown
from kvctl.bench.report.tables import Content
from kvctl.bench.result import Difference

VOID = {"meta", "link", "br", "use", "path"}


class Reader(HTMLParser):
    """Checks that tags close in order; keeps what the page would load, and what stands in it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.classes, self.text, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        for name in ("src", "href", "xlink:href", "data", "action"):
            if name in found and not found[name].startswith(("#", "data:")):
                self.loads.append((tag, found[name]))
        self.classes += (found.get("class") or "").split()
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_html_that_loads_nothing(result):
    text = to_html(result)
    found = Reader(text)
    assert found.loads == [] and "@import" not in text and "url(http" not in text
    shown = "".join(found.text)
    for table in Content(result).tables:
        assert table.title in shown
    assert {"timeline", "tree", "generation", "bonus"} <= set(found.classes)
    assert "tell a story" not in shown  # questions are not copied into it


def test_pictures_are_in_it(result):
    pytest.importorskip("matplotlib")
    found = Reader(to_html(result))
    assert found.open == [] and to_html(result) == to_html(result)
    assert to_html(result).count("<svg") >= 5
    assert len(found.ids) == len(set(found.ids)), "two pictures share an id"


def test_without_matplotlib_it_says_so(result, monkeypatch):
    def missing(*_):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(page, "pictures_of", missing)
    monkeypatch.setattr(page, "tree_picture", missing)
    text = to_html(result)
    Reader(text)
    assert "pip install kvctl[plot]" in text and "<svg" not in text


def test_hostile_text_stays_text(result):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    tokens = {number: evil for number in result.tokens}
    configurations = [replace(result.configurations[0])]
    configurations += [
        replace(one, drafter=f"lookup:{evil}") if one.drafter else one
        for one in result.configurations[1:]
    ]
    changed = replace(result, model=evil, tokens=tokens, configurations=configurations)
    changed.questions = {**result.questions, "name": evil}
    changed.differences = [Difference(1, evil, 0, 3, evil, evil, evil, 0.5)]
    text = to_html(changed)
    Reader(text)
    assert text.count("<script") == 1 + sum(1 for one in changed.answers if one.trees)
    assert "<img" not in text


def test_markdown_has_the_tables(result):
    text = to_markdown(result, level=2)
    assert text.startswith("## fake on mine\n")
    rows = [line for line in text.splitlines() if line.startswith("| lookup:length=3 |")]
    assert len(rows) == 3
    for table in text.split("### ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_differences_are_warned_of_and_shown(result):
    changed = replace(
        result, differences=[Difference(1, 81, 0, 4, "so far", "plain", "drafted", 1e-7)]
    )
    text = to_markdown(changed)
    assert "1 texts are not plain decoding's, and should be" in text
    assert "| lookup | 81, turn 1 | 4 | 'so far' | 'plain' | 'drafted' | 1.0e-07 |" in text


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def test_a_browser_shows_it(result, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = chromium()
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (tmp_path / "report.html").write_text(to_html(result), encoding="utf-8")
    said, asked = [], []
    with sync_api.sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = window.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((tmp_path / "report.html").as_uri())
        first = shown.locator("table.sorted").first
        head = first.locator("th").nth(1)

        def column():
            return [float(text) for text in first.locator("td:nth-child(2)").all_inner_texts()]

        before = column()
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert column() == sorted(before, reverse=True)
        head.locator("button").click()
        assert column() == sorted(before) and head.get_attribute("aria-sort") == "ascending"
        drafted = shown.locator(".timeline .bonus").first
        drafted.click()
        assert "accepted" in shown.locator("pre.tree").first.inner_text()
        assert shown.locator("svg").first.bounding_box()["width"] > 200
        window.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
