"""The text side of a model: its tokenizer, its chat template, and what ends its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .._ffi.untrusted import read_json_object
from .sources import fields_of_huggingface, named_templates
from .stream import TextStream
from .template import ChatTemplate, Message
from .to_mlc import to_mlc
from .tokenizer import Special, Tokenizer
from .turn_end import find_stops, written_turn_end


def require_text_files(model_dir: Path) -> None:
    """Raise FileNotFoundError where a model directory lacks a file that `ModelText.load` needs."""
    for name in ("mlc-chat-config.json", "tokenizer.json"):
        if not (model_dir / name).exists():
            raise FileNotFoundError(
                f"{model_dir} has no {name}: is it a model directory? ('kvctl compile' makes one)"
            )


class ModelText:
    """The tokenizer, the chat template and the stops of a model.

    Parameters
    ----------
    tokenizer
        The model's.
    fields
        Of an ``mlc-chat-config.json``, kvctl's or MLC's; see `kvctl.text.sources`.

    Raises
    ------
    ValueError
        If a field of the stops is of a wrong type. A chat template is read when it is first asked
        for, so that a model whose template is damaged continues plain text.
    """

    def __init__(self, tokenizer: Tokenizer, fields: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._fields = dict(fields or {})
        written = self._written_turn_end()
        self._stop_tokens, self._stop_strings = find_stops(tokenizer, self._fields, written)

    @classmethod
    def load(cls, model_dir: str | Path) -> ModelText:
        """Read a model directory, kvctl's or MLC's.

        A directory whose ``mlc-chat-config.json`` gives no template, or its name alone, may have
        Hugging Face's files beside it; these are read then.

        Raises
        ------
        FileNotFoundError
            If ``mlc-chat-config.json`` or ``tokenizer.json`` is missing.
        ValueError
            If a file is damaged.
        """
        model_dir = Path(model_dir)
        require_text_files(model_dir)
        fields = read_json_object(model_dir / "mlc-chat-config.json")
        tokenizer = Tokenizer.from_file(model_dir)
        if "chat_template" not in fields and not isinstance(fields.get("conv_template"), dict):
            found = fields_of_huggingface(model_dir)
            fields = {**found, **fields}
        return cls(tokenizer, fields)

    @classmethod
    def from_huggingface(cls, directory: str | Path) -> ModelText:
        """Read a directory with ``tokenizer.json`` and what belongs to it.

        Raises
        ------
        FileNotFoundError
            If there is no ``tokenizer.json``.
        ValueError
            If a file is damaged.
        """
        return cls(Tokenizer.from_file(Path(directory)), fields_of_huggingface(directory))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end the model's turn, wherever they were named."""
        return self._stop_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end the model's turn."""
        return self._stop_strings

    @property
    def has_template(self) -> bool:
        """Whether the model says how a conversation looks."""
        return bool(self._fields.get("chat_template") or self._fields.get("conv_template"))

    @cached_property
    def template(self) -> ChatTemplate:
        """How the model wants conversations written.

        Raises
        ------
        ValueError
            If the model says nothing of it, or nothing that can be read.
        """
        source, conversation = (self._fields.get(k) for k in ("chat_template", "conv_template"))
        if source:
            special = self._fields.get("special_tokens")
            special = special if isinstance(special, dict) else {}
            return ChatTemplate(named_templates(source), special_tokens=special)
        if isinstance(conversation, dict):
            return ChatTemplate.from_mlc(conversation)
        if conversation:
            raise ValueError(
                f"the chat template is given by its name alone, {conversation!r}: put its fields "
                "into conv_template of mlc-chat-config.json, or the model's chat_template.jinja "
                "beside it"
            )
        raise ValueError(
            "the model has no chat template: continue plain text (--raw), or put its "
            "chat_template.jinja beside its other files"
        )

    def encode(self, text: str, *, special: Special = "parse") -> list[int]:
        """Return the tokens of a text to be continued as it is, BOS first where the model has one.

        Parameters
        ----------
        text
            Any text.
        special
            "parse" or "literal"; see `Tokenizer.encode`.
        """
        return self._tokenizer.encode(text, special=special, control=self._control_tokens)

    def encode_chat(
        self,
        messages: str | Sequence[Message],
        *,
        system: str | None = None,
        special: Special = "parse",
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Return the tokens that ask the model for its next turn.

        The BOS token is there as the template writes it, or as MLC's ``system_prefix_token_ids``,
        and never twice.

        Parameters
        ----------
        messages
            The turns so far, or the one thing that the user says.
        system
            A system message to come first, instead of the template's own; it may be empty.
        special
            What the text of a control token within a message becomes. "parse": the control token,
            as with Hugging Face and MLC, so that a user may write ``<|im_end|>`` and end the turn.
            "literal": its characters.
        add_generation_prompt
            Whether the model's turn begins.
        variables
            What else the template reads; see `ChatTemplate.render`.

        Raises
        ------
        ValueError
            If there is no template, or it refuses the conversation, or `special` is another value.
        """
        turns: Sequence[Message]
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        template, tokenizer = self.template, self._tokenizer
        if special == "literal":
            marked = tokenizer.marked(self._control_tokens)
            turns = marked.mark(list(turns))
            variables = marked.mark(variables)
        text = template.render(turns, add_generation_prompt=add_generation_prompt, **variables)
        if special == "literal":
            tokens = marked.encode_rendered(text)
        else:
            tokens = tokenizer.encode(text, special=special, bos=False)
        conversation = template.conversation
        first = conversation.prefix_tokens if conversation is not None else []
        return tokens if first and tokens[: len(first)] == first else [*first, *tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones included."""
        return self._tokenizer.decode(tokens)

    def stream(self) -> TextStream:
        """Return a decoder of tokens as they come, which ends where the model's turn does."""
        return TextStream(
            self._tokenizer, stop_tokens=self._stop_tokens, stop_strings=self._stop_strings
        )

    def stop_check(self) -> Callable[[int], bool]:
        """Return a function for ``generate(stop_when=)``: whether a token ends the turn.

        It follows one generation: each needs its own.
        """
        stream = self.stream()

        def ends(token: int) -> bool:
            stream.push(token)
            return stream.stopped_by is not None

        return ends

    def to_fields(self) -> dict[str, Any]:
        """Return the fields for an ``mlc-chat-config.json``, the stops of all places together.

        MLC's engine reads ``conv_template``: it is there where it can say what the template says.
        """
        tokens, texts = sorted(self._stop_tokens), list(self._stop_strings)
        fields = {**self._fields, "stop_token_ids": tokens, "stop_strs": texts}
        if self._fields.get("chat_template") and "conv_template" not in fields:
            try:
                found = to_mlc(self.template, stop_tokens=tokens, stop_strings=texts)
            except ValueError:
                found = None  # the template is damaged
            if found is not None:
                fields["conv_template"] = found
        return fields

    @cached_property
    def _control_tokens(self) -> frozenset[str]:
        """Added tokens that control the model though its tokenizer does not call them special."""
        try:
            sources = "\0".join(self.template.source.values())
        except ValueError:
            sources = ""
        conversation = self._fields.get("conv_template")
        if isinstance(conversation, dict):
            sources += repr(conversation)
        return frozenset(
            token
            for token, id in self._tokenizer.added_tokens.items()
            if id in self._stop_tokens or (token.strip() and token in sources)
        )

    def _written_turn_end(self) -> str | None:
        """Return the control token that the template writes behind the model's turn, if it does."""
        try:
            return written_turn_end(self.template, self._tokenizer) if self.has_template else None
        except ValueError:
            return None  # whoever wants to chat will be told
