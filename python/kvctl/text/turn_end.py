"""What ends the model's turn: the tokens and strings of all places that name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .sources import strings, token_ids
from .template import ChatTemplate
from .tokenizer import Tokenizer

# Tokens that end a turn whatever the files say, where a tokenizer has them as special ones.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")
# The same as characters, for a tokenizer that has no such token.
_WRITTEN = re.compile(r"<\|[a-z_]+\|>")
_ANSWER = "kvctl0answer"


def find_stops(
    tokenizer: Tokenizer, fields: Mapping[str, Any], written: str | None
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the tokens and the strings that end the model's turn.

    Parameters
    ----------
    tokenizer
        The model's.
    fields
        Of its ``mlc-chat-config.json``.
    written
        Its `written_turn_end`.

    Raises
    ------
    ValueError
        If a field is of a wrong type.
    """
    ids = list(named_stop_tokens(fields))
    texts = strings(fields.get("stop_strs"), "stop_strs")
    conversation = fields.get("conv_template")
    if isinstance(conversation, dict):
        texts += strings(conversation.get("stop_str"), "stop_str")
    special = fields.get("special_tokens")
    eos = special.get("eos_token") if isinstance(special, dict) else None
    for text in (eos, written):
        if not isinstance(text, str) or not text:
            continue
        id = tokenizer.token_id(text)
        if id is None:
            texts.append(text)
        else:
            ids.append(id)
    ids += [id for text, id in tokenizer.special_tokens.items() if text in _TURN_ENDS]
    # A stop string that is a token: the token ends the text before anything of it is decoded.
    ids += [tokenizer.added_tokens[text] for text in texts if text in tokenizer.added_tokens]
    return frozenset(ids), tuple(dict.fromkeys(texts))


def named_stop_tokens(fields: Mapping[str, Any]) -> frozenset[int]:
    """Return the stop tokens that the fields name by id.

    Raises
    ------
    ValueError
        If a field is of a wrong type.
    """
    ids = token_ids(fields.get("eos_token_id"), "eos_token_id")
    ids += token_ids(fields.get("stop_token_ids"), "stop_token_ids")
    conversation = fields.get("conv_template")
    if isinstance(conversation, dict):
        ids += token_ids(conversation.get("stop_token_ids"), "stop_token_ids")
    return frozenset(ids)


def written_turn_end(template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    """Return what a template writes right behind the model's turn, if it is a control token.

    ChatML writes ``<|im_end|>`` there, whatever the model calls its end of a text.

    Raises
    ------
    ValueError
        If the template refuses a conversation of two turns.
    """
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    text = template.render(turns, add_generation_prompt=False)
    _, found, behind = text.rpartition(_ANSWER)
    behind = behind.lstrip() if found else ""
    tokens = [token for token in tokenizer.added_tokens if token.strip()]
    written = [token for token in tokens if behind.startswith(token)]
    if written:
        return max(written, key=len)
    match = _WRITTEN.match(behind)
    return match[0] if match is not None else None
