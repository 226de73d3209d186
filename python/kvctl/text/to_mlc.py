"""A Jinja template as MLC's ``conv_template``, where MLC's fields can say the same.

kvctl reads the Jinja template. MLC's own engine, on the same directory, reads ``conv_template``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .template import ChatTemplate, Message

_SYSTEM, _USER, _ANSWER, _NEXT = ("kvctl0system", "kvctl0user", "kvctl0answer", "kvctl0next")


def to_mlc(
    template: ChatTemplate, *, stop_tokens: Sequence[int], stop_strings: Sequence[str]
) -> dict[str, Any] | None:
    """Return a ``conv_template`` that renders conversations as a Jinja template does.

    The fields are read off a few renderings and tried on others. Many templates say more than MLC's
    fields can: one that writes a system message only where there is one, for instance.

    Parameters
    ----------
    template
        A Jinja template.
    stop_tokens, stop_strings
        What ends the model's turn.

    Returns
    -------
    dict or None
        The fields, or None where they would render other text.
    """
    try:
        fields = _read_off(template)
        if fields is None or not _agrees(template, ChatTemplate.from_mlc(fields)):
            return None
    except ValueError:
        return None  # the template refuses one of the conversations
    return {**fields, "stop_str": list(stop_strings), "stop_token_ids": list(stop_tokens)}


def _read_off(template: ChatTemplate) -> dict[str, Any] | None:
    user, answer, again = (
        {"role": role, "content": text}
        for role, text in (("user", _USER), ("assistant", _ANSWER), ("user", _NEXT))
    )
    system = {"role": "system", "content": _SYSTEM}

    def between(turns: Sequence[Message], begins: bool) -> list[str]:
        """Return what the template writes before, between and behind what is said."""
        text = template.render(turns, add_generation_prompt=begins)
        parts = []
        for turn in turns:
            before, found, text = text.partition(turn["content"])
            if not found:
                raise ValueError("the template leaves a message out")
            parts.append(before)
        return [*parts, text]

    head, prompt = between([user], True)
    _, behind_user = between([user], False)
    _, to_answer, to_user, _ = between([user, answer, again], True)
    _, _, behind_answer = between([user, answer], False)
    before_system, after_system, _ = between([system, user], True)
    begin_user = to_user.removeprefix(behind_answer)
    begin_answer = to_answer.removeprefix(behind_user)
    begin_prompt = prompt.removeprefix(behind_user)
    line = "\n" if begin_user.endswith("\n") and begin_answer.endswith("\n") else ""
    roles = {
        "user": begin_user.removesuffix(line),
        "assistant": begin_answer.removesuffix(line),
    }
    end_system = after_system.removesuffix(begin_user)
    default = head.removesuffix(begin_user)
    if not begin_prompt.startswith(roles["assistant"]):
        return None
    return {
        "name": "custom",
        "system_template": before_system + "{system_message}" + end_system,
        "system_message": default.removeprefix(before_system).removesuffix(end_system),
        "system_prefix_token_ids": None,
        "add_role_after_system_message": True,
        "roles": roles,
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
        "messages": [],
        "seps": [behind_user, behind_answer],
        "role_content_sep": line,
        "role_empty_sep": begin_prompt.removeprefix(roles["assistant"]),
        "function_string": "",
        "use_function_calling": False,
    }


def _agrees(template: ChatTemplate, conversation: ChatTemplate) -> bool:
    """Whether two templates render conversations of all lengths alike."""

    def said(role: str, text: str) -> Mapping[str, str]:
        return {"role": role, "content": text}

    turns = [
        said("user", "a?"),
        said("assistant", "b\n\nc"),
        said("user", "{x} 'd'"),
        said("assistant", "e"),
        said("user", "f"),
    ]
    systems = [[], [said("system", "")], [said("system", "Be\nkind.")]]
    tried = [[*system, *turns[:length]] for system in systems for length in (1, 3, 5)]
    return all(template.render(one) == conversation.render(one) for one in tried)
