"""Every Python example of the README and of docs/ runs."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvctl.draft import DRAFTERS

ROOT = Path(__file__).parents[2]


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_pages_have_examples():
    assert len(examples("README.md")) >= 2
    assert len(examples("docs/masks.md")) >= 2


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.hf] if "kvctl.hf" in code else [])
        for number, code in enumerate(examples("README.md"))
    ],
)
def test_example_of_the_readme(number, request, tmp_path):
    code = examples("README.md")[number]
    if "kvctl.hf" in code:  # on the demo model instead of one of the hub
        pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")
        from hf_demo import write_demo

        code = code.replace("Qwen/Qwen3-0.6B", str(write_demo(tmp_path)))
    if "build/models/smollm2" in code:
        code = code.replace("build/models/smollm2", str(request.getfixturevalue("smollm2")))
    exec(compile(code, f"README.md example {number}", "exec"), {})


# What a page needs that is not there by default: a package, and the marker of the tests with it.
NEEDS = {
    "docs/models/torch.md": ("torch", "torch"),
    "docs/models/hf.md": ("transformers", "hf"),
}
GUIDES = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in GUIDES if examples(page)]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[getattr(pytest.mark, NEEDS[page][1])] if page in NEEDS else [])
        for page in PAGES
    ],
)
@pytest.mark.usefixtures("known_drafters")
def test_examples_of_a_page(page, request, monkeypatch):
    """They read on from each other."""
    monkeypatch.chdir(ROOT)
    if "import matplotlib" in "".join(examples(page)):
        pytest.importorskip("matplotlib", reason="needs matplotlib: pip install kvctl[plot]")
    if page in NEEDS:
        package, extra = NEEDS[page]
        pytest.importorskip(package, reason=f"needs {package}: pip install 'kvctl[{extra}]'")
    names = {}
    for number, code in enumerate(examples(page)):
        if "build/models/smollm2" in code:
            code = code.replace("build/models/smollm2", str(request.getfixturevalue("smollm2")))
        if page == "docs/machines/tensor_parallel.md":
            for written, here in request.getfixturevalue("whole_sums").items():
                code = code.replace(written, here)
        if page == "docs/machines/distributed.md":
            for written, here in request.getfixturevalue("two_machines").items():
                code = code.replace(written, here)
        exec(compile(code, f"{page} example {number}", "exec"), names)


@pytest.fixture
def known_drafters():
    """What a page registers goes with it."""
    before = dict(DRAFTERS)
    yield
    DRAFTERS.clear()
    DRAFTERS.update(before)


@pytest.fixture
def gloo():
    """Skip where kvctl was built without Gloo, and say so."""
    from kvctl.distributed import collectives

    if "gloo" not in collectives.available():
        pytest.skip("needs collectives over Gloo: apt install libgloo-dev, then build again")


@pytest.fixture
def whole_sums(gloo, tmp_path):
    """The models of the example of whole sums, for one process and for two workers."""
    from tiny_model import compile_tiny_model

    one = compile_tiny_model(tmp_path / "one")
    two = compile_tiny_model(tmp_path / "two", tensor_parallel=2, tensor_parallel_sums="whole")
    return {"build/models/llama-2-whole": str(two), '"build/models/llama"': f'"{one}"'}


@pytest.fixture
def two_machines(gloo, tmp_path):
    """What stands in the examples of several workers, and what it is here; the second machine."""
    from tiny_model import compile_tiny_model

    model = compile_tiny_model(tmp_path / "model", tensor_parallel=2)
    port = two_free_ports()
    command = [sys.executable, "-m", "kvctl.distributed.host", "127.0.0.1", str(port)]
    with subprocess.Popen(command) as host:  # it calls until the controller listens
        yield {
            "build/models/llama-2-workers": str(model),
            "10.0.0.1": "127.0.0.1",
            "10.0.0.2": "127.0.0.1",
            "9090": str(port),
        }
        host.kill()


def two_free_ports():
    """Return a port that is free, as the next one is: kvctl's and Disco's."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue
