"""Drafters by name, with options: "lookup:length=8,branches=false"."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .guesses import JacobiDrafter, LookaheadDrafter, TokenRecyclingDrafter
from .lookup import LookupDrafter
from .mixed import MixedDrafter
from .model import SelfDrafter
from .suffix import SuffixDrafter

if TYPE_CHECKING:
    from .drafter import Drafter

#: The drafters that commands know by name: their classes, or functions that make one. What stands
#: after the colon of a name are keyword arguments. A parameter ``runner`` is given the target's.
DRAFTERS: dict[str, Callable[..., Drafter]] = {
    "jacobi": JacobiDrafter,
    "lookahead": LookaheadDrafter,
    "lookup": LookupDrafter,
    "recycling": TokenRecyclingDrafter,
    "self": SelfDrafter,
    "suffix": SuffixDrafter,
}

_COMMA = " (a comma stands between options, so no value has one)"
_WORDS = {"true": True, "false": False, "none": None}


def register_drafter(name: str, make: Callable[..., Drafter]) -> None:
    """Let commands know a drafter by a name.

    Parameters
    ----------
    name
        Letters, digits, dashes and underscores.
    make
        A class, or a function that makes a drafter. Its keyword arguments are the options; those of
        types int, float, bool, str and their unions with None can be given on a command line. One
        called ``runner`` is the target's runner, and no option.

    Raises
    ------
    ValueError
        If the name is taken or has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"a drafter's name has letters, digits, - and _ only, not {name!r}")
    if name in DRAFTERS:
        raise ValueError(f"there is a drafter {name} already")
    DRAFTERS[name] = make


def make_drafter(spec: str, runner: Any = None) -> Drafter:
    """Make a drafter from its name and options.

    Parameters
    ----------
    spec
        ``name`` or ``name:option=value,option=value``; several with ``+`` between them draft
        together (`MixedDrafter`). A name is one of `DRAFTERS`, or ``module.attribute`` of a class
        or function of your own.
    runner
        The target's runner, for drafters that want it.

    Raises
    ------
    ValueError
        If there is no such drafter or option, or a value is of the wrong type; and what the drafter
        raises.
    """
    if "+" in spec:
        parts = spec.split("+")
        for part in parts:  # before any of them reads files
            try:
                _named(part.partition(":")[0])
            except ValueError as error:
                raise ValueError(
                    f"{error} (a + stands between drafters, so no value has one)"
                ) from error
        return MixedDrafter(*(make_drafter(part, runner) for part in parts))
    name, _, rest = spec.partition(":")
    make = _named(name)
    parameters = _parameters(make)
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in parameters or key == "runner":
            known = [key for key, hint in parameters.items() if _is_option(key, hint)]
            raise ValueError(
                f"the drafter {name} has no option {part!r}; its options are "
                f"{', '.join(known) or 'none'}{_COMMA if options and not equals else ''}"
            )
        if key in options:
            raise ValueError(f"the option {key} of the drafter {name} is given twice")
        options[key] = _converted(value, parameters[key], f"{name}:{key}")
    if "runner" in parameters:
        options["runner"] = runner
    return make(**options)


def _named(name: str) -> Callable[..., Drafter]:
    """Return the class or function that a name stands for."""
    return DRAFTERS.get(name) or _imported(name)


def _imported(name: str) -> Callable[..., Drafter]:
    """Return what ``module.attribute`` names."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(
            f"there is no drafter {name!r}; known are {', '.join(sorted(DRAFTERS))}, and "
            "module.attribute of one of your own"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the drafter {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{name} is neither a class nor a function that makes a drafter")
    return typing.cast("Callable[..., Drafter]", found)


def _parameters(make: Callable[..., Drafter]) -> dict[str, Any]:
    """Return the types of the parameters that can be given by name."""
    target = make.__init__ if inspect.isclass(make) else make
    try:
        hints = typing.get_type_hints(target)
    except NameError:  # types that are imported for type checkers alone
        hints = {}
    return {
        name: hints.get(name, parameter.annotation)
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def _is_option(name: str, hint: Any) -> bool:
    """Return whether a parameter can be given on a command line."""
    return name != "runner" and bool({int, float, bool, str} & set(_kinds(hint)))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows."""
    if isinstance(hint, str):  # it could not be resolved
        names = {"int": int, "float": float, "bool": bool, "None": type(None)}
        return tuple(names.get(part.strip(), str) for part in hint.split("|"))
    if hint in (inspect.Parameter.empty, Any):
        return (str,)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _converted(text: str, hint: Any, what: str) -> Any:
    """Return an option's value as its type wants it."""
    wanted = _kinds(hint)
    if text.lower() in _WORDS and type(_WORDS[text.lower()]) in wanted:
        return _WORDS[text.lower()]
    for kind in (int, float):
        if kind in wanted:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in wanted:
        return text
    names = " or ".join(getattr(one, "__name__", str(one)) for one in wanted)
    raise ValueError(f"the option {what} takes {names}, not {text!r}")
