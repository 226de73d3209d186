"""What a model's files say of its text: chat template, special tokens, stops.

It becomes fields of the ``mlc-chat-config.json`` that ``kvctl compile`` writes. Where MLC has a
field it is used; these are kvctl's own:

- ``chat_template``: the Jinja template, or several by name;
- ``special_tokens``: what a template reads as ``bos_token`` and so on;
- ``stop_token_ids``, ``stop_strs``: all that ends the model's turn, wherever it was named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._ffi.untrusted import read_json_object, read_text

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# GGUF's names of the special tokens.
_GGUF = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
_GGUF_STOPS = ("eos", "eot", "eom")


def fields_of_huggingface(directory: str | Path) -> dict[str, Any]:
    """Return what the files of a Hugging Face directory say; any of them may be absent.

    ``generation_config.json``, ``config.json``, ``tokenizer_config.json``,
    ``special_tokens_map.json``, ``chat_template.jinja`` (before the template of
    ``tokenizer_config.json``) and ``additional_chat_templates/*.jinja`` are read.

    Raises
    ------
    ValueError
        If a file is damaged, or holds a value of a wrong type.
    """
    directory = Path(directory)
    generation, config, tokenizer, special = (
        read_json_object(directory / name) if (directory / name).exists() else {}
        for name in (
            "generation_config.json",
            "config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        )
    )
    text_config = config.get("text_config")
    places = [generation, config, text_config if isinstance(text_config, dict) else {}]
    fields: dict[str, Any] = {}
    for key in _IDS:
        found = [place[key] for place in places if place.get(key) is not None]
        if found:
            fields[key] = found[0]
    stops = [id for place in places for id in token_ids(place.get("eos_token_id"), "eos_token_id")]
    fields["stop_token_ids"] = sorted(set(stops))
    fields["special_tokens"] = {
        f"{name}_token": text
        for name in _SPECIAL
        for text in [_token_text({**special, **tokenizer}.get(f"{name}_token"))]
        if text is not None
    }
    fields["stop_strs"] = strings(generation.get("stop_strings"), "stop_strings")
    templates = named_templates(tokenizer.get("chat_template"))
    file = directory / "chat_template.jinja"
    if file.exists():
        templates = {"default": read_text(file)}
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = read_text(file)
    if templates:
        fields["chat_template"] = _one_or_several(templates)
    return fields


def fields_of_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metadata of a GGUF file say.

    Raises
    ------
    ValueError
        If a value is of a wrong type.
    """
    ids = {}
    for name in (*_GGUF.values(), *_GGUF_STOPS):
        found = token_ids(metadata.get(f"tokenizer.ggml.{name}_token_id"), f"{name}_token_id")
        if found:
            ids[name] = found[0]
    fields: dict[str, Any] = {
        f"{name}_token_id": ids[_GGUF[name]] for name in ("bos", "eos", "pad") if _GGUF[name] in ids
    }
    fields["stop_token_ids"] = sorted({ids[name] for name in _GGUF_STOPS if name in ids})
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    fields["special_tokens"] = {
        f"{name}_token": tokens[ids[key]]
        for name, key in _GGUF.items()
        if key in ids and ids[key] < len(tokens)
    }
    fields["stop_strs"] = []
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if (key == prefix or key.startswith(f"{prefix}.")) and isinstance(text, str)
    }
    if templates:
        fields["chat_template"] = _one_or_several(templates)
    return fields


def named_templates(template: Any) -> dict[str, str]:
    """Return the templates of a field ``chat_template``: a string, a dict, or a list of both.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    try:
        pairs = (
            template.items()
            if isinstance(template, Mapping)
            else [(entry["name"], entry["template"]) for entry in template]
        )
        templates = dict(pairs)
    except (TypeError, KeyError, AttributeError):
        templates = {"": None}
    if not all(isinstance(part, str) for pair in templates.items() for part in pair):
        raise ValueError(
            "chat_template must be a string, or a list of objects with 'name' and 'template'"
        )
    return templates


def token_ids(value: Any, name: str) -> list[int]:
    """Return the ids of a field that holds one, several or none.

    Raises
    ------
    ValueError
        If it holds something else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    for id in values:
        if isinstance(id, bool) or not isinstance(id, int):
            raise ValueError(f"{name} must be a token id or a list of them, not {value!r}")
    # Some converters write -1 for a token that there is not.
    return [id for id in values if id >= 0]


def strings(value: Any, name: str) -> list[str]:
    """Return the strings of a field that holds one, several or none, without empty ones.

    Raises
    ------
    ValueError
        If it holds something else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise ValueError(f"{name} must be a string or a list of them, not {value!r}")
    return [text for text in values if text]


def _token_text(token: Any) -> str | None:
    """Return a special token's text: files hold it as it is, or in an object with its options."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _one_or_several(templates: Mapping[str, str]) -> Any:
    return templates["default"] if list(templates) == ["default"] else dict(templates)
