"""Check that every file includes or imports only from the rooms below its own.

    python scripts/check_layers.py [ROOT]

C++: what a room may include is what its ``kvctl_room`` in CMakeLists.txt names, and the public
headers. Python: the table ``PYTHON``. It prints what is wrong and exits with 1; ``make lint`` runs
it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# The rooms of python/kvctl, and which of the others each may import; "*" is all of them.
PYTHON = {
    "_core": "",
    "_ffi": "",
    "checking": "_ffi",
    "drawing": "",
    "mask": "_core _ffi drawing",
    "tree": "_core _ffi drawing mask",
    "cache": "_ffi drawing mask tree",
    "recurrent": "_ffi mask tree cache",
    "verification": "_core _ffi drawing tree",
    "draft": "_core _ffi drawing mask tree verification",
    "torch": "_ffi mask tree cache text",
    "cuda": "_ffi cache torch",
    "engine": "_ffi mask tree cache recurrent verification draft text",
    "distributed": "_ffi cache engine",
    "hf": "_ffi mask tree cache torch engine text",
    "text": "_ffi",
    "models": "_ffi text",
    "heads": "_ffi cache mask verification draft engine models text",
    "testing": "tree verification",
    "open_runner": "distributed engine hf text",
    "bench": "_ffi draft drawing engine text tree verification",
    "checks": "_ffi cache engine open_runner referee tree verification",
    "referee": "tree verification testing",
    "cli": "*",
    "kvctl": "*",
}
# Public headers that a program without TVM includes.
WITHOUT_TVM = {
    f"kvctl/{name}.h"
    for name in (
        "api",
        "checking",
        "drafter",
        "dtype",
        "error",
        "mask",
        "sampling",
        "step_request",
        "token_tree",
        "verify",
    )
}
# What core is kept free of; the headers above are, too.
FOREIGN = re.compile(r"tvm|dlpack|pybind11|Python\.h|omp\.h|cuda")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def cpp_rooms(cmake: str) -> dict[str, set[str]]:
    """Return the rooms of cpp/, and what each may include, as CMakeLists.txt says."""
    rooms = {}
    for folder, rest in re.findall(r"^kvctl_room\(([\w/]+)([^)]*)\)", cmake, re.MULTILINE):
        uses = re.search(r"USES((?:\s+[a-z][\w/]*)*)", rest)
        rooms[folder] = {folder, *(uses[1].split() if uses else ())}
    rooms["pybind"] = {"pybind", *(room for room in rooms if room.startswith("core/"))}
    return rooms


def cpp_problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with the includes of cpp/."""
    rooms = cpp_rooms((root / "CMakeLists.txt").read_text())
    by_length = sorted(rooms, key=len, reverse=True)

    def room_of(path: str) -> str | None:
        return next((room for room in by_length if path.startswith(room + "/")), None)

    for file in sorted((root / "cpp").rglob("*.*")):
        path = file.relative_to(root / "cpp").as_posix()
        name = path.removeprefix("include/")
        pure = path.startswith("core/") or name in WITHOUT_TVM
        room = room_of(path)
        if room is None and name == path:
            yield f"cpp/{path} is in no room of CMakeLists.txt"
            continue
        for include in INCLUDE.findall(file.read_text()):
            public = include.startswith("kvctl/")
            target = room_of(include)
            if pure and (FOREIGN.search(include) or (public and include not in WITHOUT_TVM)):
                yield f"cpp/{path} includes {include}, and must build without TVM and the like"
            elif target is not None and target not in rooms.get(room or "", ()):
                yield f"cpp/{path} includes {include}, which {room or 'a public header'} may not"


def imports(file: Path, module: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Yield the modules of kvctl that a file imports, and whether for type checking only."""
    package = module if file.name == "__init__.py" else module[:-1]
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(file.read_text()), False)]
    while stack:
        node, typing = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing = True
        stack += [(child, typing) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            yield from ((one.name.split("."), typing) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (([*base, one.name], typing) for one in node.names)


def python_problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with the imports of python/kvctl, cycles included."""
    graph: dict[str, set[str]] = {}
    files = sorted((root / "python" / "kvctl").rglob("*.py"))
    modules = {
        file: list(file.relative_to(root / "python").with_suffix("").parts) for file in files
    }
    modules = {f: m[:-1] if f.name == "__init__.py" else m for f, m in modules.items()}
    known = {".".join(module) for module in modules.values()} | {"kvctl._core"}
    for file, module in modules.items():
        room = (module + module)[1]
        may = PYTHON.get(room)
        if may is None:
            yield f"{file.relative_to(root)} is in the room {room}, which PYTHON does not name"
            continue
        edges = graph.setdefault(".".join(module), set())
        for target, typing in imports(file, module):
            while target and ".".join(target) not in known:
                target = target[:-1]
            if not target:
                continue
            if not typing and target != module:
                edges.add(".".join(target))
            other = (target + target)[1]
            if other != room and may != "*" and other not in may.split():
                yield f"{file.relative_to(root)} imports {'.'.join(target)}, which {room} may not"
    try:
        # Importing a module of a package is no import of what the package offers.
        TopologicalSorter({m: edges - {"kvctl"} for m, edges in graph.items()}).prepare()
    except CycleError as error:
        yield f"these modules import each other: {' <- '.join(error.args[1])}"


def main() -> None:
    """Print what is wrong."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    problems = [*cpp_problems(root), *python_problems(root)]
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
