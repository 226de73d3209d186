"""A report's page without a browser: its script runs on objects that stand for its elements."""

import json
from html.parser import HTMLParser

# What page.js asks of a document, and no more.
_DOCUMENT = """
class Element {
  constructor(about) { Object.assign(this, about); this.attributes = {}; this.handlers = []; }
  getAttribute(name) { return this.attributes[name] ?? null; }
  setAttribute(name, value) { this.attributes[name] = value; }
  removeAttribute(name) { delete this.attributes[name]; }
  addEventListener(kind, handler) { if (kind === "click") this.handlers.push(handler); }
  click() { this.handlers.forEach((handler) => handler()); }
  querySelector(selector) { return this.parts[selector]; }
  querySelectorAll(selector) { return this.all[selector]; }
}
const tables = CONTENT.tables.map(({heads, rows}) => {
  const cells = heads.map(() => new Element({parts: {button: new Element({})}}));
  const body = {
    rows: rows.map((values) => ({cells: values.map((value) => ({dataset: {value}}))})),
    append(...sorted) { this.rows = sorted; },
  };
  return {tHead: {rows: [{cells}]}, tBodies: [body]};
});
const sections = CONTENT.sections.map(({script, spans}) => new Element({
  parts: {script: {textContent: script}, "pre.tree": {textContent: ""}},
  all: {".timeline span": spans.map(({round, title}) => {
    const chosen = new Set();
    return new Element({
      dataset: {round}, title, chosen,
      classList: {toggle: (name, on) => on ? chosen.add(name) : chosen.delete(name)},
    });
  })},
}));
const document = {querySelectorAll: (selector) =>
  ({"table.sorted": tables, "section.generation": sections})[selector]};
"""


class _Page(HTMLParser):
    """Collects the sorted tables, the generations and the page's own script."""

    def __init__(self):
        super().__init__()
        self.tables, self.sections, self.script, self._inside = [], [], "", None

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "table" and given.get("class") == "sorted":
            self.tables.append({"heads": [], "rows": []})
        elif tag == "th":
            self.tables[-1]["heads"].append("")
        elif tag == "tr" and self.tables[-1]["heads"]:
            self.tables[-1]["rows"].append([])
        elif tag == "td":
            self.tables[-1]["rows"][-1].append(given["data-value"])
        elif tag == "section":
            self.sections.append({"script": "", "spans": []})
        elif tag == "span" and "data-round" in given:
            one = {"round": given["data-round"], "title": given["title"]}
            self.sections[-1]["spans"].append(one)
        elif tag == "script":
            self._inside = "json" if "type" in given else "script"

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = None

    def handle_data(self, data):
        if self._inside == "json":
            self.sections[-1]["script"] += data
        elif self._inside == "script":
            self.script += data


def page_in_v8(engine, html):
    """Run a page's script in a MiniRacer; return what was read from the page."""
    page = _Page()
    page.feed(html)
    page.close()
    content = json.dumps({"tables": page.tables, "sections": page.sections})
    engine.eval(f"const CONTENT = {content};{_DOCUMENT}")
    engine.eval(page.script)
    return page
