"""The exceptions of kvctl that are not Python's own."""

from __future__ import annotations

from tvm_ffi import register_error


@register_error("OutOfPagesError")
class OutOfPagesError(RuntimeError):
    """The cache has fewer free pages than an operation needs; the cache is unchanged."""


# Kinds that tvm-ffi would otherwise raise as RuntimeError.
register_error("NotImplementedError", NotImplementedError)
register_error("MemoryError", MemoryError)
register_error("FileNotFoundError", FileNotFoundError)
# Kinds that callbacks may raise: page selectors, observers, progress.
register_error("KeyboardInterrupt", KeyboardInterrupt)
register_error("ZeroDivisionError", ZeroDivisionError)
register_error("OverflowError", OverflowError)
