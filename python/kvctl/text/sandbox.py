"""Jinja for chat templates: what Hugging Face gives them, in a sandbox, with limits.

A chat template comes with a model's files, so it is a stranger's program. The sandbox keeps it from
Python's internals. `limits` keep it from running for ever and from filling the memory.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from . import limits

# Of no use to a prompt, and they multiply what they are given.
_LEFT_OUT_GLOBALS = ("lipsum", "cycler", "joiner")
_LEFT_OUT_FILTERS = ("urlize", "wordwrap", "xmlattr", "pprint", "filesizeformat", "random")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, and a count of what a template does in it."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            optimized=False,  # constants would be computed before anything is counted
        )
        for name in _LEFT_OUT_FILTERS:
            self.filters.pop(name, None)
        for name in _LEFT_OUT_GLOBALS:
            self.globals.pop(name, None)
        self.filters = {name: _limited(name, filter) for name, filter in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Names
        self._steps = 0

    def begin(self) -> None:
        """Start counting the steps of a rendering."""
        self._steps = 0

    @property
    def step(self) -> None:
        """Count a run of a loop's or a macro's body; a property, since calls go through `call`.

        Raises
        ------
        SecurityError
            If there were too many.
        """
        self._steps += 1
        if self._steps > limits.MOST_STEPS:
            raise SecurityError(f"it takes more than {limits.MOST_STEPS} steps")

    def concat_limited(self, *parts: Any) -> str:
        """Return ``a ~ b``."""
        strings = [str(part) for part in parts]
        limits.check_size(sum(map(len, strings)))
        return "".join(strings)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something from within a template."""
        # The sandbox wraps str.format in a function of its own.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            limits.check_method(owner, getattr(__obj, "__name__", ""), (*args, *kwargs.values()))
        return limits.checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right``."""
        limits.check_operation(operator, left, right)
        return limits.checked(super().call_binop(context, operator, left, right))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile a template whose loops count their steps."""
        _replace_concats(source)
        bodies: list[Any] = list(source.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in bodies:
            node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("step")))
        source.set_environment(self)
        result: str = super()._generate(source, *args, **kwargs)
        return result


def _replace_concats(node: nodes.Node) -> None:
    """Replace every ``a ~ b`` below a node by a call that looks at the size first."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_without_concat(item) for item in value]
        else:
            setattr(node, field, _without_concat(value))


def _without_concat(value: Any) -> Any:
    if isinstance(value, nodes.Node):
        _replace_concats(value)
    if isinstance(value, nodes.Concat):
        function = nodes.EnvironmentAttribute("concat_limited")
        return nodes.Call(function, value.nodes, [], None, None)
    return value


def _limited(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that looks at what it is given first."""

    @functools.wraps(filter)  # keeps Jinja's mark of what is passed first
    def limited(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(filter, "jinja_pass_arg") else args
        given = limits.check_filter(name, (*given, *kwargs.values()))[: len(given)]
        args = (*args[: len(args) - len(given)], *given)
        return limits.checked(filter(*args, **kwargs))

    return limited


class _GenerationTag(Extension):
    """``{% generation %} … {% endgeneration %}``: what a model said. It changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` without Python's class, from which more could be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Names(Namespace):
    """``namespace`` whose names do not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; unlike Jinja's own filter it escapes nothing for HTML."""
    limits.check_filter("tojson", (indent,))
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    limits.check_size(len(text))
    return text


def _raise(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _now(format: str) -> str:
    limits.check_format(format)
    return datetime.now().strftime(format)
