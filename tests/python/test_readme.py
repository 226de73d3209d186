"""Every Python example of the README runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, request):
    code = EXAMPLES[number]
    if "build/models/smollm2" in code:
        code = code.replace("build/models/smollm2", str(request.getfixturevalue("smollm2")))
    exec(compile(code, f"README.md example {number}", "exec"), {})
