"""Raise a clear ImportError if TVM has no compiler; imported before anything that needs one."""

from __future__ import annotations

from tvm.base import _RUNTIME_ONLY

if _RUNTIME_ONLY:
    raise ImportError(
        "kvctl.models needs TVM's compiler, and this TVM has only its runtime (libtvm_compiler.so "
        "is missing, or TVM_USE_RUNTIME_LIB is set); compiled models run without it"
    )
