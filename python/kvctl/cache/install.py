"""kvctl's cache and recurrent state under TVM's names, for libraries that call only those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._ffi import functions as ffi


def install() -> None:
    """Put kvctl's cache behind ``vm.builtin.paged_attention_kv_cache_create``.

    The recurrent state goes behind ``vm.builtin.rnn_state_create``. A VM resolves its functions
    when it is initialised: model libraries that are initialised while kvctl is installed get
    kvctl's functions, and keep them after :func:`uninstall`.
    """
    ffi.cache.install()
    ffi.recurrent.install()


def uninstall() -> None:
    """Put TVM's cache and recurrent state back."""
    ffi.cache.uninstall()
    ffi.recurrent.uninstall()


@contextmanager
def installed() -> Iterator[None]:
    """:func:`install` for the length of a ``with`` block."""
    before = bool(ffi.cache.is_installed())
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()
