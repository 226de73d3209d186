"""scripts/check_layers.py: what a wrong include or import is reported as."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = """
kvctl_room(core/cache)
kvctl_room(core/mask USES core/cache INSIDE rules)
kvctl_room(kernels USES core/mask
           core/cache LINKS OpenMP::OpenMP_CXX)
"""


def check(root: Path) -> str:
    script = ROOT / "scripts" / "check_layers.py"
    run = subprocess.run(
        [sys.executable, script, root], capture_output=True, text=True, check=False
    )
    assert run.returncode == bool(run.stdout), run.stderr
    return run.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def test_the_repository_keeps_its_layers() -> None:
    assert check(ROOT) == ""


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("cpp/core/cache/pages.h", '"core/mask/mask.h"'),
        ("cpp/core/mask/mask.cc", '"kernels/copy.h"'),
        ("cpp/core/mask/mask.cc", "<tvm/ffi/object.h>"),
        ("cpp/core/mask/rules/one.h", "<omp.h>"),
        ("cpp/core/mask/mask.cc", '"kvctl/paged_kv_cache.h"'),
        ("cpp/pybind/mask.cc", '"kernels/copy.h"'),
        ("cpp/include/kvctl/mask.h", "<tvm/ffi/object.h>"),
        ("cpp/include/kvctl/mask.h", '"core/mask/mask.h"'),
        ("cpp/include/kvctl/paged_kv_cache.h", '"core/mask/mask.h"'),
    ],
)
def test_a_wrong_include_is_reported(root: Path, path: str, include: str) -> None:
    write(root, path, f"#include {include}")
    assert f"{path} includes {include[1:-1]}" in check(root)


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("cpp/core/mask/mask.cc", '"core/cache/pages.h"'),
        ("cpp/core/mask/rules/one.h", '"core/mask/mask.h"'),
        ("cpp/core/mask/mask.cc", "<vector>"),
        ("cpp/core/mask/mask.cc", '"kvctl/mask.h"'),
        ("cpp/kernels/copy.cc", '"core/cache/pages.h"'),
        ("cpp/kernels/copy.cc", "<omp.h>"),
        ("cpp/pybind/mask.cc", "<pybind11/pybind11.h>"),
        ("cpp/include/kvctl/paged_kv_cache.h", "<tvm/ffi/object.h>"),
    ],
)
def test_a_right_include_is_not(root: Path, path: str, include: str) -> None:
    write(root, path, f"#include {include}")
    assert check(root) == ""


def test_a_file_in_no_room_is_reported(root: Path) -> None:
    write(root, "cpp/core/attic/old.cc", "")
    assert "cpp/core/attic/old.cc is in no room" in check(root)


@pytest.mark.parametrize(
    "statement",
    [
        "from .. import engine",
        "from ..engine import runner",
        "from ..engine.runner import ModelRunner",
        "import kvctl.engine.runner",
        "def later():\n    from kvctl.engine import runner",
        "if TYPE_CHECKING:\n    from ..engine.runner import ModelRunner",
    ],
)
def test_a_wrong_import_is_reported(root: Path, statement: str) -> None:
    write(root, "python/kvctl/engine/__init__.py", "")
    write(root, "python/kvctl/engine/runner.py", "")
    write(root, "python/kvctl/models/llama.py", statement)
    assert "python/kvctl/models/llama.py imports kvctl.engine" in check(root)


def test_a_right_import_is_not(root: Path) -> None:
    write(root, "python/kvctl/tree.py", "import numpy\nfrom . import _core")
    write(root, "python/kvctl/engine/runner.py", "from ..tree import TokenTree")
    assert check(root) == ""


def test_a_room_that_nobody_named_is_reported(root: Path) -> None:
    write(root, "python/kvctl/attic/old.py", "")
    assert "python/kvctl/attic/old.py is in the room attic" in check(root)


def test_modules_that_import_each_other_are_reported(root: Path) -> None:
    write(root, "python/kvctl/cache/one.py", "from .two import f")
    write(root, "python/kvctl/cache/two.py", "def g():\n    from .one import h")
    assert "import each other: kvctl.cache." in check(root)


def test_an_import_for_types_alone_makes_no_cycle(root: Path) -> None:
    write(root, "python/kvctl/cache/one.py", "from .two import f")
    write(root, "python/kvctl/cache/two.py", "if TYPE_CHECKING:\n    from .one import h")
    assert check(root) == ""
