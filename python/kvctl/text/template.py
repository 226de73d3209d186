"""Chat templates: a conversation to the text that asks a model for its next turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .conversation import Conversation

Message = Mapping[str, Any]
"""``{"role": "user", "content": "Hi"}``, and whatever more a template reads."""

_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """How a model wants conversations written: a Jinja template, or MLC's ``conv_template``.

    Parameters
    ----------
    source
        A Jinja template, or several by name. ``tool_use`` is taken where tools are given, and
        ``default`` otherwise.
    special_tokens
        What a template reads as ``bos_token``, ``eos_token`` and so on.

    Raises
    ------
    ValueError
        If a template is no Jinja.
    TypeError
        If `source` is of another type.

    Notes
    -----
    A Jinja template gets what Hugging Face's ``apply_chat_template`` passes: ``messages``,
    ``tools``, ``documents``, ``add_generation_prompt``, the special tokens, ``raise_exception``,
    ``strftime_now``, ``tojson``, loop controls and the tag ``generation``. It runs in a sandbox
    with limits; see docs/models/text.md.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else source
        if not isinstance(sources, Mapping) or not sources:
            raise TypeError(
                "a chat template is a str, or several by name in a dict, not "
                f"{type(source).__name__}"
            )
        self._special_tokens = dict(special_tokens or {})
        self._conversation: Conversation | None = None
        self._sources = dict(sources)
        self._compiled = {name: _compile(text) for name, text in sources.items()}

    @classmethod
    def from_mlc(cls, conv_template: Mapping[str, Any]) -> ChatTemplate:
        """Return the template of an ``mlc-chat-config.json``.

        Parameters
        ----------
        conv_template
            Its field of that name.

        Raises
        ------
        ValueError
            If a field is missing or of another type.
        """
        template = cls.__new__(cls)
        template._special_tokens = {}
        template._conversation = Conversation(conv_template)
        template._sources = {}
        template._compiled = {}
        return template

    @property
    def source(self) -> dict[str, str]:
        """The Jinja templates by name; none for MLC's."""
        return dict(self._sources)

    @property
    def conversation(self) -> Conversation | None:
        """MLC's ``conv_template``, or None."""
        return self._conversation

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """Return a conversation as the model reads it.

        Parameters
        ----------
        messages
            The turns so far. An empty system message is a message: what becomes of it is the
            template's affair.
        add_generation_prompt
            Whether the text ends with the beginning of the model's turn.
        tools
            JSON schemas of functions that the model may call.
        documents
            Texts that the model may use.
        name
            Which of several templates.
        variables
            What else a template reads, ``enable_thinking`` say.

        Returns
        -------
        str
            The text, control tokens and all.

        Raises
        ------
        ValueError
            If the template refuses the conversation, fails, or runs too long.
        TypeError
            If a message is no dict of strings, numbers, lists and dicts.
        """
        messages = [_message(message) for message in messages]
        if not messages:
            raise ValueError("a conversation needs at least one message")
        if self._conversation is not None:
            _refuse_unread(tools=tools, documents=documents, **variables)
            return self._conversation.render(messages, add_generation_prompt=add_generation_prompt)
        compiled = self._compiled[self._choose(name, tools)]
        values = {
            **self._special_tokens,
            **{key: _plain(value, key) for key, value in variables.items()},
            "messages": messages,
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        return _render(compiled, values)

    def _choose(self, name: str | None, tools: Any) -> str:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._compiled else "default"
        if name not in self._compiled:
            known = ", ".join(sorted(self._compiled))
            raise ValueError(f"there is no chat template named {name!r}; there are: {known}")
        return name


def _refuse_unread(**given: Any) -> None:
    unread = [name for name, value in given.items() if value is not None]
    if unread:
        raise ValueError(f"MLC's conversation templates read no {unread[0]}")


def _compile(source: str) -> Any:
    from jinja2 import TemplateError

    from .sandbox import TemplateEnvironment

    if not isinstance(source, str):
        raise TypeError(f"a chat template is a str, not {type(source).__name__}")
    try:
        return TemplateEnvironment().from_string(source)
    except TemplateError as error:
        raise ValueError(f"the chat template is no Jinja: {error}") from None
    except (RecursionError, MemoryError, SyntaxError) as error:
        # Python's own compiler refuses: too deeply nested, or a break where no loop is.
        raise ValueError(f"the chat template cannot be compiled: {error}") from None


def _render(compiled: Any, values: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    from .limits import check_size

    compiled.environment.begin()
    pieces, size = [], 0
    try:
        for piece in compiled.generate(values):
            size += len(piece)
            check_size(size)
            pieces.append(piece)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None
    except Exception as error:  # a stranger's program may raise anything
        message = f"the chat template fails: {type(error).__name__}: {error}"
        raise ValueError(message) from error
    return "".join(pieces)


def _message(message: Any) -> dict[str, Any]:
    """Return a message as Hugging Face hands it to a template."""
    if not isinstance(message, Mapping):
        raise TypeError(f"a message must be a dict, not {type(message).__name__}")
    plain = {key: _plain(value, "a message") for key, value in message.items() if value is not None}
    if "role" not in plain:
        raise ValueError(f"a message needs a role: {dict(message)}")
    thought = next((plain[key] for key in _REASONING if key in plain), None)
    if thought is None:
        return plain
    return {"thinking": thought, **plain, "reasoning_content": thought}


def _plain(value: Any, what: str) -> Any:
    """Copy plain data: a template gets no object of which it could call methods."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, what): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    raise TypeError(
        f"{what} must be made of strings, numbers, lists and dicts, not {type(value).__name__}"
    )
