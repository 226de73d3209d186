"""The functions of a compiled model library, found by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import tvm_ffi

from ..._ffi import functions as ffi
from ..._ffi.convert import to_path
from ..._ffi.cuda_compiler import prepare_device


class FunctionTable(Mapping[str, Callable[..., Any]]):
    """The functions of one compiled Relax library: a mapping from name to callable.

    Loading starts the library's virtual machine, which looks up the global functions that it calls.
    Call ``kvctl.install()`` before, if the library is to use kvctl's cache.

    Iteration lists the virtual machine's own functions. Indexing also finds functions in the
    modules that the library imports, which cannot be listed.

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
        function that is not registered.

    Examples
    --------
    >>> table = kvctl.FunctionTable("model/lib.so")
    >>> "batch_verify" in table
    True
    >>> table["batch_verify"](embeddings, cache, params)
    """

    def __init__(self, path: str | PathLike[str], *, device: str = "cpu") -> None:
        prepare_device(device)
        self._handle = ffi.runner.load_library(to_path(path), tvm_ffi.device(device))

    @classmethod
    def _wrap(cls, handle: ffi.FunctionTableHandle) -> FunctionTable:
        table = cls.__new__(cls)
        table._handle = handle
        return table

    @property
    def path(self) -> str:
        """The library's file."""
        return str(ffi.runner.get_library_path(self._handle))

    @property
    def metadata(self) -> dict[str, Any]:
        """What the library says about itself; empty if it says nothing."""
        text = str(ffi.runner.get_library_metadata(self._handle))
        metadata: dict[str, Any] = json.loads(text) if text else {}
        return metadata

    @contextmanager
    def instrumented(self, callback: Callable[[str, Any, Sequence[Any]], None]) -> Iterator[None]:
        """Have a function called after every call that the virtual machine makes.

        Parameters
        ----------
        callback
            It is called with the name of what was called, the result and the arguments. A function
            that writes its results has their tensors as its last arguments.
        """

        def called(function: Any, name: str, before: bool, result: Any, /, *arguments: Any) -> None:
            if not before:
                callback(name, result, arguments)

        ffi.runner.instrument_library(self._handle, called)
        try:
            yield
        finally:
            ffi.runner.instrument_library(self._handle, None)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return ffi.runner.get_function(self._handle, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(ffi.runner.has_function(self._handle, name))

    def __iter__(self) -> Iterator[str]:
        return map(str, ffi.runner.get_function_names(self._handle))

    def __len__(self) -> int:
        return len(ffi.runner.get_function_names(self._handle))

    def __repr__(self) -> str:
        return f"FunctionTable({self.path!r}, {len(self)} functions)"
