"""What the options ``--json-schema`` and ``--grammar`` mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._ffi.untrusted import read_text

if TYPE_CHECKING:
    from ..engine.protocol import Runner


def read_grammar(
    runner: Runner, json_schema: Path | None, grammar: Path | None
) -> Callable[[], Any] | None:
    """Return what makes a matcher for a text; None where no file was named.

    Raises
    ------
    ImportError
        If xgrammar is not installed.
    FileNotFoundError
        If the file is not there.
    ValueError
        If both are given, or xgrammar does not understand the file.
    """
    if json_schema is not None and grammar is not None:
        raise ValueError("give either --json-schema or --grammar")
    path = json_schema or grammar
    if path is None:
        return None
    content = read_text(path)
    from ..engine.grammar.from_xgrammar import xgrammar_compiler

    compiler = xgrammar_compiler(runner)
    import xgrammar

    read = compiler.compile_grammar if json_schema is None else compiler.compile_json_schema
    try:
        compiled = read(content)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
    return lambda: xgrammar.GrammarMatcher(compiled)
