"""kvctl's cache and recurrent state behind TVM's own names, for libraries that know only those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm_ffi

_ffi = tvm_ffi.get_global_func

_install = _ffi("kvctl.cache.install")
_uninstall = _ffi("kvctl.cache.uninstall")
_installed = _ffi("kvctl.cache.installed")
_install_recurrent = _ffi("kvctl.recurrent.install")
_uninstall_recurrent = _ffi("kvctl.recurrent.uninstall")


def install() -> None:
    """Put kvctl's cache behind ``vm.builtin.paged_attention_kv_cache_create``.

    And its recurrent state behind ``vm.builtin.rnn_state_create``. A VM resolves its functions when
    it is initialised: model libraries initialised from now on get kvctl's, and keep them after
    :func:`uninstall`.
    """
    _install()
    _install_recurrent()


def uninstall() -> None:
    """Put TVM's cache and recurrent state back."""
    _uninstall()
    _uninstall_recurrent()


@contextmanager
def installed() -> Iterator[None]:
    """:func:`install` for the length of a ``with`` block."""
    before = bool(_installed())
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()
