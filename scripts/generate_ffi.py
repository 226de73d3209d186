"""Write python/kvctl/_ffi/functions.py: the packed functions that kvctl calls, with their types.

    python scripts/generate_ffi.py [--check]

The types are those that libkvctl.so recorded when it registered its functions. Run it (``make
ffi``) after a change of a function's name, arguments or result; ``--check`` only tells whether the
file is what the library says, and is part of ``make lint``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "python" / "kvctl" / "_ffi" / "functions.py"
# Functions of TVM's runtime that kvctl calls.
OF_TVM = [
    "runtime.TVMTensorCreateView",
    *(f"vm.builtin.kv_state_{verb}_sequence" for verb in ("add", "fork", "remove")),
    "vm.builtin.kv_state_clear",
    "vm.builtin.attention_kv_cache_empty",
    *(
        f"vm.builtin.attention_kv_cache_get_{what}"
        for what in (
            "num_available_pages",
            "query_positions",
            "sequence_length",
            "total_sequence_length",
        )
    ),
    "vm.builtin.rnn_state_get",
    "vm.builtin.rnn_state_set",
]
PLAIN = {
    "Any": "Any",
    "None": "None",
    "bool": "bool",
    "int": "int",
    "float": "float",
    "Device": "Device",
    "DataType": "DataType",
    "DLTensor*": "SupportsDLPack",
    "ffi.Bytes": "bytes",
    "ffi.Function": "Callable[..., Any]",
    "ffi.Object": "Object",
    "ffi.Shape": "Shape",
    "ffi.String": "str",
    "ffi.Tensor": "Tensor",
}
HEAD = '''\
"""The packed functions that kvctl calls, with their types: `cache.popn` is kvctl.cache.popn.

Generated from what libkvctl.so registers. Do not edit: run ``make ffi`` (scripts/generate_ffi.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

from tvm_ffi import Object, register_object
from tvm_ffi import get_global_func as _get

from . import libraries as libraries  # loads the library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from tvm_ffi import Device, Shape, Tensor
    from tvm_ffi import dtype as DataType

    class SupportsDLPack(Protocol):
        """A tensor of any library."""

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
'''
# Making the class of a record takes most of a millisecond, which importing kvctl need not wait for.
RECORDS = '''
else:

    def __getattr__(name: str) -> type[Object]:
        """Make the class of a record when it is first asked for."""
        if name not in NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        record = type(name, (Object,), {"__module__": __name__})
        return globals().setdefault(name, register_object(f"kvctl.{name}")(record))
'''


class Types:
    """Renders type schemas, and collects the object types that they name."""

    def __init__(self) -> None:
        self.handles: dict[str, str] = {}
        """Declarations of object types that are only passed on, by type key; parents first."""
        self.records: dict[str, list[tuple[str, str]]] = {}
        """Name and type of the fields of object types that have some, by type key."""

    def render(self, schema: dict[str, Any]) -> str:
        """Return a schema as a Python annotation."""
        kind, args = schema["type"], [self.render(arg) for arg in schema.get("args", ())]
        if kind == "Optional":
            return f"{args[0]} | None"
        if kind == "ffi.Array":
            return f"Sequence[{args[0] if args else 'Any'}]"
        return PLAIN.get(kind) or self._object(kind)

    def function(self, schema: dict[str, Any]) -> str:
        """Return the annotation of a function."""
        result, *arguments = (self.render(arg) for arg in schema["args"])
        # An argument must be a Shape; a result is read, and Shape does not say of what it is one.
        result = result.replace("Shape", "tuple[int, ...]")
        return f"Callable[[{', '.join(arguments)}], {result}]"

    def _object(self, key: str) -> str:
        from tvm_ffi.core import _lookup_or_register_type_info_from_type_key as type_info

        name = key.rpartition(".")[2]
        if key in self.handles or key in self.records:
            return name if key in self.records else f"{name}Handle"
        info = type_info(key)
        if info.fields:
            self.records[key] = [
                (field.name, self.render(_schema(field.metadata))) for field in info.fields
            ]
            return name
        parent = info.parent_type_info
        base = "Object" if parent is None else self.render({"type": parent.type_key})
        self.handles[key] = f'{name}Handle = NewType("{name}Handle", {base})'
        return f"{name}Handle"


def _schema(metadata: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(metadata["type_schema"])
    return schema


def load_library() -> None:
    """Load libkvctl.so without ``kvctl/__init__.py``, which needs the table."""
    spec = importlib.util.find_spec("kvctl")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("kvctl is not installed: run 'make'")
    package = ModuleType("kvctl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["kvctl"] = package
    importlib.import_module("kvctl._ffi.libraries")


def table() -> str:
    """Return what the file must be, for the library that is loaded."""
    from tvm_ffi.registry import get_global_func_metadata, list_global_func_names

    types = Types()
    areas: dict[str, list[str]] = {}
    ours = [name for name in list_global_func_names() if name.startswith("kvctl.")]
    for full_name in sorted(ours) + sorted(OF_TVM):
        area, _, verb = full_name.rpartition(".")
        annotation = types.function(_schema(get_global_func_metadata(full_name)))
        areas.setdefault(area, []).append(f'    {verb}: {annotation} = _get("{full_name}")')
    lines = [HEAD, *types.handles.values(), "if TYPE_CHECKING:\n"]
    for key, fields in types.records.items():
        lines += _record(key, fields)
    lines += [RECORDS.replace("NAMES", repr([key.rpartition(".")[2] for key in types.records]))]
    for area, functions in areas.items():
        name = area.removeprefix("kvctl.").replace(".", "_")
        lines += [f"class {name}:", f'    """``{area}.*``."""', "", *functions]
    return _formatted("\n".join(lines))


def _record(key: str, fields: list[tuple[str, str]]) -> Iterator[str]:
    yield f'    class {key.rpartition(".")[2]}(Object):\n        """The C++ object ``{key}``."""\n'
    yield from (f"        {name}: {kind}" for name, kind in fields)
    arguments = ", ".join(f"{name}: {kind}" for name, kind in fields)
    yield f"\n        def __init__(self, *, {arguments}) -> None: ..."


def _formatted(source: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", f"--stdin-filename={TABLE}", "-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return run.stdout


def main() -> None:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    load_library()
    source = table()
    if not check:
        TABLE.write_text(source)
    elif TABLE.read_text() != source:
        raise SystemExit(f"{TABLE.relative_to(ROOT)} is not what libkvctl.so says: run 'make ffi'")


if __name__ == "__main__":
    main()
