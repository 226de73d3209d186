"""The functions of a compiled model library, found by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

import tvm_ffi

from .._ffi.cuda_compiler import prepare_device

_load_library = tvm_ffi.get_global_func("kvctl.runner.load_library")
_get_function = tvm_ffi.get_global_func("kvctl.runner.get_function")
_has_function = tvm_ffi.get_global_func("kvctl.runner.has_function")
_function_names = tvm_ffi.get_global_func("kvctl.runner.function_names")
_library_path = tvm_ffi.get_global_func("kvctl.runner.library_path")
_library_metadata = tvm_ffi.get_global_func("kvctl.runner.library_metadata")


class FunctionTable(Mapping[str, Callable[..., Any]]):
    """The functions of one compiled Relax library: a mapping from name to callable.

    Loading starts the library's virtual machine. That binds the global functions it calls at once,
    so what is to stand behind them (``kvctl.install()``, for one) must be installed before.

    Besides what iteration lists (the virtual machine's own functions), indexing finds functions in
    the modules that the library imports, which cannot be listed.

    Parameters
    ----------
    path : path-like
        A shared library that was exported from a Relax executable.
    device : str
        Where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a Relax library, or its metadata is not a JSON object.
    RuntimeError
        If its virtual machine does not start, for example because the library calls a global
        function that nobody has registered.

    Examples
    --------
    >>> table = kvctl.FunctionTable("model/lib.so")
    >>> "batch_verify" in table
    True
    >>> table["batch_verify"](embeddings, cache, params)
    """

    def __init__(self, path: str | PathLike[str], *, device: str = "cpu") -> None:
        prepare_device(device)
        self._handle = _load_library(fspath(path), tvm_ffi.device(device))

    @classmethod
    def _wrap(cls, handle: Any) -> FunctionTable:
        table = cls.__new__(cls)
        table._handle = handle
        return table

    @property
    def path(self) -> str:
        """The library's file."""
        return str(_library_path(self._handle))

    @property
    def metadata(self) -> dict[str, Any]:
        """What the library says about itself; empty if it says nothing."""
        text = str(_library_metadata(self._handle))
        metadata: dict[str, Any] = json.loads(text) if text else {}
        return metadata

    def __getitem__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = _get_function(self._handle, name)
        return function

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(_has_function(self._handle, name))

    def __iter__(self) -> Iterator[str]:
        return map(str, _function_names(self._handle))

    def __len__(self) -> int:
        return len(_function_names(self._handle))

    def __repr__(self) -> str:
        return f"FunctionTable({self.path!r}, {len(self)} functions)"
