"""What the pages name exists: files, functions, and every public name in the reference."""

import ast
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
FOLDERS = ("benchmarks", "cmake", "cpp", "docs", "examples", "python", "scripts", "tests")
SUFFIXES = ("py", "h", "cc", "cu", "cuh", "md", "txt", "toml", "yml", "sh", "cmake")
# Files of other programs, and of models, that pages speak of.
FOREIGN = {"llm_chat.cc", "config.json", "nccl.h", "run.sh"}
# TVM's headers, the source of a generated one, and a path within the bundle for CUDA machines.
FOREIGN_SOURCES = {
    "runtime/vm/kv_state.h",
    "runtime/threading_backend.h",
    "cmake/build_info.h",
    "kvctl/docs/machines/cuda.md",
}


def tracked_files():
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("needs a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).exists()]


def code_words(text):
    """Words in backticks and in code blocks."""
    for fence in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from re.findall(r"[\w./*<>-]+", fence)
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield from re.findall(r"[\w./*<>-]+", span)


def named_paths(text):
    for word in code_words(text):
        if "<" in word or word.startswith(("/", ".venv", "build/", "kvctl-cuda/", "-")):
            continue
        word = word.rstrip(".")
        if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            yield word
        elif re.fullmatch(rf"[\w./-]*\w\.({'|'.join(SUFFIXES)})", word) and word not in FOREIGN:
            yield word


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    files = tracked_files()
    absent = []
    for path in named_paths((ROOT / page).read_text()):
        exists = list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()
        if not exists and not any(f"/{name}".endswith(f"/{path}") for name in files):
            absent.append(path)
    assert not absent


def test_sources_name_files_that_exist():
    """Comments and messages too: a path of before a move misleads."""
    rooms = "benchmarks|cmake|core|cpp|docs|examples|ffi|kernels|kvctl|pybind|runtime|scripts|tests"
    path = re.compile(rf"(?<![\w/.-])(?:{rooms})/[\w/-]+\.(?:{'|'.join(SUFFIXES)})\b")
    files = tracked_files()
    known = {"/".join(name.split("/")[i:]) for name in files for i in range(name.count("/") + 1)}
    absent = []
    for name in files:
        made_up = name in ("tests/python/test_layers.py", "tests/python/test_documented_names.py")
        if made_up or name.startswith("benchmarks/results/"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        absent += [(name, word) for word in path.findall(text) if word not in known]
    assert [found for found in absent if found[1] not in FOREIGN_SOURCES] == []


def test_an_absent_path_is_seen():
    text = "`cpp/core/nowhere.cc`, `no_such.h` and\n```\npython scripts/nothing.py\n```\n"
    assert set(named_paths(text)) == {"cpp/core/nowhere.cc", "no_such.h", "scripts/nothing.py"}


def test_the_map_names_functions_that_are_there():
    """In its tables each row's first cell names files, and functions or types in them."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    absent = []
    for row in rows:
        spans = re.findall(r"`([^`]+)`", row)
        sources = [(ROOT / span).read_text() for span in spans if (ROOT / span).is_file()]
        for span in spans:
            if not (ROOT / span).is_file() and not any(
                re.search(rf"\b{span}\b", source) for source in sources
            ):
                absent.append((row, span))
    assert not absent


@pytest.mark.parametrize("room", ["", ".cache", ".recurrent", ".draft", ".verification", ".models"])
def test_every_public_name_is_in_the_reference(room):
    package = f"kvctl{room}"
    if package == "kvctl.models":
        pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    pages = sorted((ROOT / "docs" / "reference").glob("*.rst"))
    text = "\n".join(page.read_text() for page in pages)
    documented = {name.rsplit(".", 1)[-1] for name in re.findall(r"\.\. auto\w+:: ([\w.]+)", text)}
    public = {name for name in import_module(package).__all__ if not name.startswith("__")}
    assert public <= documented


def test_every_public_name_of_torch_is_in_the_reference():
    """Read from the source: PyTorch may not be there."""
    source = (ROOT / "python" / "kvctl" / "torch" / "__init__.py").read_text()
    public = ast.literal_eval(source.split("__all__ = ")[1])
    page = (ROOT / "docs" / "reference" / "torch.rst").read_text()
    assert {*re.findall(r"\.\. auto(?:class|function):: (\w+)", page)} == {*public}
