"""What `generate` was given as ``grammar=``: a matcher for each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .text_grammar import TextGrammar

_METHODS = ("accept_token", "fill_next_token_bitmask", "rollback", "is_terminated")


def text_grammars(grammar: Any, size: int, vocab_size: int) -> list[TextGrammar | None]:
    """Return the grammar of each of `size` texts.

    Parameters
    ----------
    grammar
        None; a matcher, for one text; a list with a matcher or None for each text; or a function
        that returns a new matcher for each.

    Raises
    ------
    TypeError
        If a matcher lacks a method of `Grammar`.
    ValueError
        If texts would share a matcher, a matcher has ended, or the list has another length.
    """
    if grammar is None:
        return [None] * size
    if isinstance(grammar, Sequence):
        matchers = list(grammar)
        if len(matchers) != size:
            raise ValueError(
                f"grammar needs one entry for each of {size} prompts, got {len(matchers)}"
            )
    elif callable(grammar) and not hasattr(grammar, "accept_token"):
        matchers = [grammar() for _ in range(size)]
    else:
        matchers = [grammar] * size
    owners: dict[int, int] = {}
    for i, matcher in enumerate(matchers):
        if matcher is not None:
            _check(matcher, i)
            if (first := owners.setdefault(id(matcher), i)) != i:
                raise ValueError(
                    f"prompts {first} and {i} share a grammar matcher, whose state follows one "
                    "text; give a list with a matcher for each prompt, or a function that returns "
                    "a new one"
                )
    return [None if one is None else TextGrammar(one, vocab_size) for one in matchers]


@contextmanager
def restored_if_raises(grammars: Sequence[TextGrammar | None]) -> Iterator[None]:
    """Whatever is raised inside, let the matchers take back what they accepted."""
    try:
        yield
    except BaseException:
        for one in grammars:
            if one is not None:
                one.restore()
        raise


def _check(matcher: Any, i: int) -> None:
    """Refuse what is no matcher, or has ended."""
    lacking = [name for name in _METHODS if not callable(getattr(matcher, name, None))]
    if lacking:
        raise TypeError(
            f"grammar must be a matcher with {', '.join(_METHODS)}; {type(matcher).__name__} "
            f"lacks {', '.join(lacking)}"
        )
    if matcher.is_terminated():
        raise ValueError(f"the grammar of prompt {i} has ended already: no token may follow")
