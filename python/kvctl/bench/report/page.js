"use strict";
for (const table of document.querySelectorAll("table.sorted")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [Number(value(a)), Number(value(b))];
      return Number.isNaN(x - y) ? value(a).localeCompare(value(b)) : x - y;
    };
    const rows = [...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    body.append(...rows);
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
}
for (const section of document.querySelectorAll("section.generation")) {
  const trees = JSON.parse(section.querySelector("script").textContent);
  const shown = section.querySelector("pre.tree");
  const spans = [...section.querySelectorAll(".timeline span")];
  spans.forEach((span) => span.addEventListener("click", () => {
    const number = Number(span.dataset.round);
    spans.forEach((other) => other.classList.toggle("chosen", other.dataset.round === span.dataset.round));
    shown.textContent = span.title + "\n" + (number > 0 ? trees[number - 1] || "" : "");
  }));
}
