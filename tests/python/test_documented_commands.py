"""The commands of the pages: run here, run by .ci/run, or at least ones that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from command_line import run

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
# Programs that are not ours. What they do is tested elsewhere: `make test` runs ctest and pytest,
# test_cpp_example.py builds the C++ example; a bundle for CUDA needs a network and a GPU.
FOREIGN = {"ctest", ".venv/bin/ctest", "pytest", "cmake", "tar", "kvctl-cuda/run.sh"}
FOREIGN |= {".venv/bin/pip", ".venv/bin/pre-commit"}


def commands(page):
    """The commands of the blocks marked `sh`, split as a shell splits them."""
    text = (ROOT / page).read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("#")[0].split("&&"):
                words = shlex.split(command)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable for it
                    del words[0]
                if words:
                    yield words


def page_commands(program):
    return [(page, c) for page in PAGES for c in commands(page) if c[0] == program]


def recipes(target):
    """The commands of a make target as a shell gets them, whether it is up to date or not."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n|.*\\\n)*)", makefile, re.MULTILINE)
    assert recipe, f"the Makefile has no target {target}"
    return recipe[1].replace("$(BIN)", ".venv/bin").replace("$(MODEL)", "build/models/smollm2")


def is_known(command):
    program = command[0]
    if program in FOREIGN or program in ("make", ".venv/bin/kvctl"):
        return True
    if driver := re.fullmatch(r"build/cp3\*/benchmarks/cpp/(\w+)", program):
        return (ROOT / "benchmarks" / "cpp" / f"{driver[1]}.cc").is_file()
    if program.endswith("python") and command[1:3] == ["-m", "pytest"]:
        return (ROOT / command[-1]).exists()
    return program.endswith("python") and (ROOT / command[1]).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_programs_are_known(page):
    assert [command for command in commands(page) if not is_known(command)] == []


def test_make_targets_exist_and_ci_runs_the_readmes():
    ci = (ROOT / ".ci" / "run").read_text()
    for page, command in page_commands("make"):
        for target in command[1:]:
            if "=" not in target:
                recipes(target)
        if page == "README.md":
            assert " ".join(command) in ci
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"run: (.*)", workflow) == ["bash .ci/run"]


def test_options_of_scripts_exist():
    checked = 0
    for page in PAGES:
        for command in commands(page):
            if not command[0].endswith("python") or command[1] == "-m":
                continue
            source = (ROOT / command[1]).read_text()
            for option in (word for word in command if word.startswith("--")):
                assert f'"{option}"' in source, (page, command)
                checked += 1
    assert checked > 5


def test_command_line_of_the_readme(smollm2):
    """`make demo` runs all but one of them; that one runs here."""
    demo = recipes("demo")
    run_here = 0
    for _, command in page_commands(".venv/bin/kvctl"):
        if " ".join(command) in demo:
            continue
        model = "build/models/smollm2"
        done = run(*(str(smollm2) if word == model else word for word in command[1:]))
        assert done.returncode == 0, done.stderr
        run_here += 1
    assert run_here == 1


def test_hooks_are_the_tools_of_make_lint():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"entry: (\S+)", hooks)
    assert len(tools) == 4
    assert set(tools) == set(re.findall(r"\.venv/bin/[\w-]+", recipes("lint"))) - {
        ".venv/bin/python"
    }


def test_pages_have_commands():
    assert len(list(commands("README.md"))) >= 6
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0
