"""Questions as a model sees them: tokens of a conversation, and text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .questions import Question

if TYPE_CHECKING:
    from ..engine.protocol import Runner
    from ..text import ModelText


def encode_turn(
    text: ModelText, question: Question, answers: Sequence[str], *, raw: bool = False
) -> list[int]:
    """Return the tokens that ask for the next answer.

    Parameters
    ----------
    text
        The model's tokenizer and chat template.
    question
        The conversation.
    answers
        The model's answers so far; the next turn of the question comes behind them.
    raw
        Continue the turns as plain text. A model without a chat template always does.
    """
    turns = question.turns[: len(answers) + 1]
    if raw or not text.has_template:
        said = [part for pair in zip(turns, [*answers, ""], strict=True) for part in pair]
        return text.encode("\n".join(part for part in said if part), special="literal")
    messages = []
    for i, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if i < len(answers):
            messages.append({"role": "assistant", "content": answers[i]})
    return text.encode_chat(messages, special="literal")


def answer_text(text: ModelText, tokens: Sequence[int]) -> str:
    """Return an answer without the token or string that ended it."""
    stream = text.stream()
    parts = [stream.push(token) for token in tokens]
    return "".join([*parts, stream.finish()])


def fits(runner: Runner, prompt_tokens: int, new_tokens: int) -> bool:
    """Return whether a prompt and its answer have room in the model's context."""
    if runner.sliding_window_size is not None:
        return True
    context = runner.context_window_size
    return context is None or prompt_tokens + new_tokens <= context
