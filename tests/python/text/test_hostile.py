"""Damaged and hostile files: a sentence, or a text; never another error, never for ever."""

import json
import random

import pytest

from kvctl.text import ModelText
from text_models import KINDS, counted, random_text

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content|trim }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
FILES = {
    "tokenizer_config.json": {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE},
    "generation_config.json": {"eos_token_id": [2, 4], "stop_strings": ["END"]},
    "config.json": {"eos_token_id": 2, "text_config": {"eos_token_id": 3}},
    "special_tokens_map.json": {"eos_token": "</s>"},
}
ODD = [
    None,
    -1,
    2**40,
    1e300,
    True,
    "",
    "\x00",
    "\ud83d",
    [],
    {},
    [[]],
    "{{",
    "\ufdd0",
    {"a": None},
]
BITS = ["{{", "}}", "{%", "%}", "|", "(", ")", ".__class__", "range(9)", "*", "~", "for", "if", "'"]


def damaged(value, rng):
    """Replace, drop or repeat something deep in a JSON value."""
    if rng.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return rng.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.2:
        del copy[key]
    else:
        copy[key] = damaged(copy[key], rng)
    return copy


def mangled(text, rng):
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice([*BITS, "", "\n"]) + text[at + rng.randrange(4) :]
    return text


def use(directory, rng):
    """Do everything with a directory; return whether it was refused somewhere."""
    try:
        text = ModelText.from_huggingface(directory)
    except ValueError as error:
        assert str(error)
        return True
    refused = False
    special = rng.choice(["parse", "literal"])
    for encode in (text.encode, text.encode_chat):
        try:
            tokens = encode(random_text(rng) + "<|im_end|>", special=special)
            whole = text.decode(tokens)
            stream = text.tokenizer.stream()
            assert "".join(stream.push(token) for token in tokens) + stream.finish() == whole
            text.stream().push(tokens)
        except ValueError as error:
            assert str(error)
            refused = True
    return refused


@pytest.mark.filterwarnings("ignore")
def test_2000_damaged_directories(tmp_path):
    rng = random.Random(13)
    kinds = ["byte_level", "byte_fallback", "unigram", "word_piece"]
    contents = {name: json.loads(KINDS[name]().to_str()) for name in kinds}
    refused, number = 0, counted(2000)
    for _ in range(number):
        files = {"tokenizer.json": contents[rng.choice(kinds)], **FILES}
        name = rng.choice(list(files))
        if rng.random() < 0.3:
            template = mangled(TEMPLATE, rng)
            files["tokenizer_config.json"] = {"chat_template": template}
        else:
            files[name] = damaged(files[name], rng)
        for file, value in files.items():
            (tmp_path / file).write_text(json.dumps(value), encoding="utf-8")
        if rng.random() < 0.2:
            data = bytearray((tmp_path / name).read_bytes())
            data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / name).write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        refused += use(tmp_path, rng)
    assert refused > number / 4
