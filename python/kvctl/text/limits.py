"""How much a chat template may do: no prompt needs as much, and a stranger's loop ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

MOST_STEPS = 250_000
"""How often the loops and macros of a template may run in one rendering, all together."""
MOST_CHARACTERS = 1 << 22
"""How long a string or a list that a template makes may be, and so what it renders."""
_MOST_WIDTH = 10_000
_MOST_BITS = 4096
_WIDE = re.compile(r"\d{5}")
_PADDING_METHODS = {"center", "ljust", "rjust", "zfill", "expandtabs"}
_PADDING_FILTERS = {"center", "indent", "batch", "slice", "round", "tojson"}


def check_size(size: int) -> None:
    """Check a length.

    Raises
    ------
    SecurityError
        If it is longer than any prompt.
    """
    if size > MOST_CHARACTERS:
        raise SecurityError(f"it makes something longer than {MOST_CHARACTERS}")


def checked(value: Any) -> Any:
    """Return what a template made.

    Raises
    ------
    SecurityError
        If it is too large.
    """
    if isinstance(value, str | list | tuple):
        check_size(len(value))
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise SecurityError(f"it makes a number of more than {_MOST_BITS} bits")
    return value


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Check ``left operator right`` before it is computed."""
    if operator == "**":
        _check_widths((left, right), 1000)
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                check_size(len(sequence) * count)
    if operator == "%" and isinstance(left, str):
        check_format(left)
        _check_widths(right if isinstance(right, tuple) else (right,))
        _check_repeats(left.count("%"), right)


def check_method(text: str, name: str, args: Sequence[Any]) -> None:
    """Check the call of a string's method."""
    if name in _PADDING_METHODS:
        _check_widths(args)
    if name == "expandtabs":
        check_size(text.count("\t") * (args[0] if args and isinstance(args[0], int) else 8))
    if name in ("format", "format_map"):
        check_format(text)
        _check_repeats(text.count("{"), args)
    if name == "replace":
        _check_replace(text, args)
    if name == "join" and args and isinstance(args[0], Sequence):
        check_size(len(text) * len(args[0]) + sum(len(str(item)) for item in args[0]))
    if name == "translate":
        raise SecurityError("str.translate is not for templates")


def check_filter(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check a filter's value and arguments; return them, what could be read once made a list."""
    if name in _PADDING_FILTERS:
        _check_widths(args[1:] if name != "tojson" else args)
    if name in ("indent", "tojson") and any(isinstance(arg, str) for arg in args[1:]):
        _check_repeats(str(args[0]).count("\n") + 1, args[1:])
    if name == "format" and isinstance(args[0], str):
        check_operation("%", args[0], args[1:])
    if name == "replace":
        _check_replace(str(args[0]), args[1:])
    if name == "join" and isinstance(args[0], Iterable):
        between = len(args[1]) if len(args) > 1 and isinstance(args[1], str) else 0
        return (_collect(args[0], between), *args[1:])
    return args


def _collect(items: Iterable[Any], between: int) -> list[Any]:
    """Return what is to be joined, as far as its length is allowed."""
    collected, size = [], 0
    for item in items:
        size += between + (len(item) if isinstance(item, str) else 1)
        check_size(size)
        collected.append(item)
    return collected


def check_format(format: str) -> None:
    """Check a format string: no width of five digits, and no width from elsewhere."""
    if _WIDE.search(format):
        raise SecurityError(f"it formats to more than {_MOST_WIDTH} characters")


def _check_widths(args: Iterable[Any], most: int = _MOST_WIDTH) -> None:
    for arg in args:
        if isinstance(arg, int) and abs(arg) > most:
            raise SecurityError(f"it asks for {arg}; at most {most} is allowed there")


def _check_repeats(count: int, args: Any) -> None:
    """Check that something of the arguments may come that often."""
    values = args if isinstance(args, list | tuple) else [args]
    longest = max((len(arg) for arg in values if isinstance(arg, str)), default=0)
    check_size(count * longest)


def _check_replace(text: str, args: Sequence[Any]) -> None:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        check_size(text.count(args[0]) * len(args[1]) + len(text))
