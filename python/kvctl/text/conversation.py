"""MLC's ``conv_template``: roles, separators, placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SYSTEM, _FUNCTION = "{system_message}", "{function_string}"
_PLACEHOLDERS = {
    "user": "{user_message}",
    "assistant": "{assistant_message}",
    "tool": "{tool_message}",
}


class Conversation:
    """A conversation as MLC writes it.

    Parameters
    ----------
    fields
        The field ``conv_template`` of an ``mlc-chat-config.json``.

    Raises
    ------
    ValueError
        If a field is missing or of another type.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        def field(name: str, kind: type, default: Any = None) -> Any:
            value = fields.get(name)
            value = default if value is None else value
            if not isinstance(value, kind):
                found = "missing" if value is None else f"of type {type(value).__name__}"
                raise ValueError(f"conv_template: '{name}' must be {kind.__name__}, it is {found}")
            return value

        self._system_template: str = field("system_template", str, _SYSTEM)
        self._system_message: str = field("system_message", str, "")
        self._role_after_system: bool = field("add_role_after_system_message", bool, True)
        self._roles = _strings(field("roles", dict), "roles")
        self._templates = {
            **_PLACEHOLDERS,
            **_strings(field("role_templates", dict, {}), "role_templates"),
        }
        self._separators: list[str] = _list(field("seps", list), str, "seps")
        if len(self._separators) not in (1, 2):
            raise ValueError(f"conv_template: 'seps' are 1 or 2, not {len(self._separators)}")
        self._content_sep: str = field("role_content_sep", str, "")
        self._empty_sep: str = field("role_empty_sep", str, "")
        self._function: str = field("function_string", str, "")
        self._strips_reasoning: bool = field("strip_reasoning_in_history", bool, False)
        self._first = [_pair(message) for message in field("messages", list, [])]
        self.prefix_tokens: list[int] = _list(
            field("system_prefix_token_ids", list, []), int, "system_prefix_token_ids"
        )
        """Tokens that come before the encoded text."""
        self.stop_tokens: list[int] = _list(
            field("stop_token_ids", list, []), int, "stop_token_ids"
        )
        """Tokens that end the model's turn."""
        self.stop_strings: list[str] = _list(field("stop_str", list, []), str, "stop_str")
        """Strings that end the model's turn. One may be empty, and then means nothing."""

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation's text, without the prefix tokens.

        Parameters
        ----------
        messages
            With roles that the template has, and "system". The last system message counts, wherever
            it stands, instead of the template's own; it may be empty.
        add_generation_prompt
            Whether the text ends with the beginning of the model's turn.

        Raises
        ------
        ValueError
            If a role is another, or a content is no text.
        """
        system = self._system_message
        turns = list(self._first)
        for message in messages:
            if message["role"] == "system":
                system = _content_text(message.get("content", ""))
            else:
                turns.append((message["role"], message.get("content")))
        if self._strips_reasoning:
            turns = _without_reasoning(turns)
        # Pieces of the template, in which the function's placeholder counts, and what people say.
        pieces = _Pieces()
        pieces.fill(self._system_template, _SYSTEM, system)
        follows_system = not pieces.is_empty
        for i, (role, content) in enumerate(turns):
            if role not in self._roles:
                known = ", ".join(sorted(self._roles))
                raise ValueError(f"the conversation template has no role {role!r}; it has: {known}")
            if content is None:
                pieces.template(self._roles[role] + self._empty_sep)
                continue
            if i > 0 or self._role_after_system or not follows_system:
                pieces.template(self._roles[role] + self._content_sep)
            for text in _texts(content):
                pieces.fill(self._templates[role], _PLACEHOLDERS.get(role, ""), text)
            pieces.template(self._separators[-1 if role == "assistant" else 0])
        if add_generation_prompt:
            if "assistant" not in self._roles:
                raise ValueError("the conversation template has no role 'assistant'")
            pieces.template(self._roles["assistant"] + self._empty_sep)
        return pieces.join(self._function)


class _Pieces:
    """A text whose template parts are known from what people said."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, bool]] = []

    @property
    def is_empty(self) -> bool:
        return not any(text for text, _ in self._pieces)

    def template(self, text: str) -> None:
        self._pieces.append((text, True))

    def fill(self, template: str, placeholder: str, content: str) -> None:
        parts = template.split(placeholder) if placeholder else [template]
        self.template(parts[0])
        for part in parts[1:]:
            self._pieces.append((content, False))
            self.template(part)

    def join(self, function: str) -> str:
        """Put the function where its last placeholder is, and nothing where the others are."""
        texts: list[str] = []
        for text, is_template in reversed(self._pieces):
            if is_template and _FUNCTION in text:
                head, _, tail = text.rpartition(_FUNCTION)
                text, function = head.replace(_FUNCTION, "") + function + tail, ""
            texts.append(text)
        return "".join(reversed(texts))


def _without_reasoning(turns: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Drop what the model thought in turns before the user's last one."""
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    last = users[-1] if users else -1
    result = []
    for i, (role, content) in enumerate(turns):
        if role == "assistant" and i < last and isinstance(content, str):
            before, found, answer = content.rpartition("</think>")
            content = answer.lstrip("\n") if found else before + answer
        result.append((role, content))
    return result


def _texts(content: Any) -> list[str]:
    """Return the texts of a message: one, or those of its parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise ValueError(f"a message's content must be text, not {type(content).__name__}")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise ValueError(f"a part of a message must be a text, not {part!r}")
    return [part["text"] for part in content]


def _content_text(content: Any) -> str:
    return "".join(_texts(content))


def _pair(message: Any) -> tuple[str, Any]:
    if isinstance(message, list | tuple) and len(message) == 2 and isinstance(message[0], str):
        return message[0], message[1]
    raise ValueError(f"conv_template: a message is a pair of role and content, not {message!r}")


def _strings(values: dict[Any, Any], name: str) -> dict[str, str]:
    for value in values.values():
        if not isinstance(value, str):
            raise ValueError(f"conv_template: '{name}' must hold strings, not {value!r}")
    return dict(values)


def _list(values: list[Any], kind: type, name: str) -> list[Any]:
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"conv_template: '{name}' must hold {kind.__name__}, not {value!r}")
    return list(values)
