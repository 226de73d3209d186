"""Every Python example of the README and of docs/ runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_pages_have_examples():
    assert len(examples("README.md")) >= 2
    assert len(examples("docs/masks.md")) >= 2


@pytest.mark.parametrize("number", range(len(examples("README.md"))))
def test_example_of_the_readme(number, request):
    code = examples("README.md")[number]
    if "build/models/smollm2" in code:
        code = code.replace("build/models/smollm2", str(request.getfixturevalue("smollm2")))
    exec(compile(code, f"README.md example {number}", "exec"), {})


NEEDS = {"torch.md": "torch"}  # what a page needs that is not there by default: a marker, too
PAGES = [p.name for p in sorted((ROOT / "docs").glob("*.md")) if examples(f"docs/{p.name}")]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[getattr(pytest.mark, NEEDS[page])] if page in NEEDS else [])
        for page in PAGES
    ],
)
def test_examples_of_a_page(page):
    """They read on from each other."""
    if "import matplotlib" in "".join(examples(f"docs/{page}")):
        pytest.importorskip("matplotlib", reason="needs matplotlib: pip install kvctl[plot]")
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"needs {NEEDS[page]}")
    names = {}
    for number, code in enumerate(examples(f"docs/{page}")):
        exec(compile(code, f"docs/{page} example {number}", "exec"), names)
