"""Between text and tokens: a model directory's tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# An unfinished UTF-8 character is at most three bytes, and a token at least one.
_LONGEST_UNFINISHED = 4


class ModelText:
    """The tokenizer, the chat template and the stop tokens of a model directory.

    Parameters
    ----------
    model_dir
        A directory with ``tokenizer.json`` and ``mlc-chat-config.json``, kvctl's or MLC's.

    Raises
    ------
    FileNotFoundError
        If one of them is missing.
    """

    def __init__(self, model_dir: Path) -> None:
        from tokenizers import Tokenizer

        for name in ("mlc-chat-config.json", "tokenizer.json"):
            if not (model_dir / name).exists():
                raise FileNotFoundError(
                    f"{model_dir} has no {name}: is it a model directory? "
                    "('kvctl compile' makes one)"
                )
        config = json.loads((model_dir / "mlc-chat-config.json").read_text(encoding="utf-8"))
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        template = config.get("conv_template")
        self._template: dict[str, Any] | None = template if isinstance(template, dict) else None
        eos = config.get("eos_token_id")
        stop = list(eos) if isinstance(eos, list) else [] if eos is None else [eos]
        if self._template is not None:
            stop += self._template.get("stop_token_ids") or []
        self.stop_tokens: frozenset[int] = frozenset(stop)

    @property
    def has_template(self) -> bool:
        """Whether the model says how a conversation looks."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as it is."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def chat(self, message: str, *, system: str | None = None) -> str:
        """Return the conversation that asks the model to answer a message.

        Parameters
        ----------
        message
            What the user says.
        system
            Instead of the template's own system message.

        Raises
        ------
        ValueError
            If the model has no chat template.
        """
        template = self._template
        if template is None:
            raise ValueError("this model has no chat template: use --raw")
        system = template.get("system_message", "") if system is None else system
        text: str = (
            template["system_template"].replace("{system_message}", system) if system else ""
        )
        roles, separator = template["roles"], template.get("role_content_sep", "")
        text += roles["user"] + separator
        text += template["role_templates"]["user"].replace("{user_message}", message)
        text += template["seps"][0] + roles["assistant"] + template.get("role_empty_sep", "")
        return text

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones included."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def stream(self) -> TextStream:
        """Return a decoder of tokens that come in pieces."""
        return TextStream(self)


class TextStream:
    """Text from tokens as they come; characters that are not whole yet are held back."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self._before: list[int] = []  # decoders look back: a leading space depends on it
        self._held: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is now certain."""
        return "".join(self._push(token) for token in tokens)

    def finish(self) -> str:
        """Return what was held back, broken characters and all."""
        return self._flush(self._decode())

    def _push(self, token: int) -> str:
        self._held.append(token)
        text = self._decode()
        if text.endswith("\ufffd") and len(self._held) < _LONGEST_UNFINISHED:
            return ""
        return self._flush(text)

    def _decode(self) -> str:
        known = self._text.decode(self._before)
        whole = self._text.decode([*self._before, *self._held])
        return whole[len(known) :]

    def _flush(self, text: str) -> str:
        if self._held:
            self._before, self._held = self._held, []
        return text
