"""Errors that damaged files lead to."""

import pytest

from kvctl._ffi.untrusted import reading


def test_errors_become_the_files():
    for error in (TypeError("x"), AttributeError("x"), ZeroDivisionError("x"), RecursionError("x")):
        with pytest.raises(ValueError, match=r"model is damaged: .*: x"), reading("model"):
            raise error


@pytest.mark.parametrize("kind", [FileNotFoundError, MemoryError, NotImplementedError, ValueError])
def test_errors_that_pass(kind):
    with pytest.raises(kind, match=r"^as it is$"), reading("model"):
        raise kind("as it is")
