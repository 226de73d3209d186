"""Tokens that other files add to tokenizer.json: what transformers 5.24 makes of them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from checkpoint_files import NAMES, RANDOM
from huggingface_files import tokenizer_json, write_config, write_shards
from kvctl.models import compile_model
from kvctl.models.checkpoints.tokens.added_tokens import read_tokenizer_json
from kvctl.text import ModelText, Tokenizer

OPTIONS = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


def write(directory, tokens=256, *, text=None, **files):
    """Write tokenizer.json, and other files whose names have _ for the dot."""
    content = tokenizer_json(tokens) if text is None else text
    (directory / "tokenizer.json").write_text(content)
    for name, fields in files.items():
        (directory / f"{name}.json").write_text(json.dumps(fields))
    return content


def entry(content, *, special=True):
    return {"content": content, "special": special, **OPTIONS}


def encode(directory, text):
    return Tokenizer(read_tokenizer_json(directory)).encode(text)


def test_nothing_to_add_leaves_the_file_as_it_is(tmp_path):
    assert read_tokenizer_json(tmp_path) is None
    content = write(tmp_path)
    assert read_tokenizer_json(tmp_path) == content
    text = tokenizer_json(256, added=1)
    decoder = {"256": entry("<added0>", special=False)}
    write(tmp_path, text=text, tokenizer_config={"added_tokens_decoder": decoder})
    assert read_tokenizer_json(tmp_path) == text


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"256": entry("<|x|>")}}},
        {"tokenizer_config": {"additional_special_tokens": ["<|x|>"]}},
        {"tokenizer_config": {"additional_special_tokens": [entry("<|x|>")]}},
        {"tokenizer_config": {"extra_special_tokens": {"image_token": "<|x|>"}}},
        {"special_tokens_map": {"additional_special_tokens": ["<|x|>"]}},
        {"added_tokens": {"<|x|>": 256}},
    ],
)
def test_a_token_that_another_file_names_is_one_token(tmp_path, files):
    write(tmp_path, **files)
    assert encode(tmp_path, "hi<|x|>") == [71, 72, 256]
    special = Tokenizer(read_tokenizer_json(tmp_path)).special_tokens
    assert special == ({} if "added_tokens" in files else {"<|x|>": 256})


def test_many_tokens_are_added_by_their_ids(tmp_path):
    decoder = {"257": entry("<|b|>"), "256": entry("<|a|>"), "71": entry("h", special=False)}
    config = {"added_tokens_decoder": decoder, "additional_special_tokens": ["<|a|>", "<|c|>"]}
    write(tmp_path, tokenizer_config=config)
    assert encode(tmp_path, "<|c|><|b|>h<|a|>") == [258, 257, 71, 256]


def test_ids_that_contradict_the_tokenizer_are_refused(tmp_path):
    for decoder, message in [
        ({"300": entry("<|x|>")}, "'<|x|>' the id 300, and with tokenizer.json it has 256"),
        ({"9": entry("<|x|>")}, "the id 9, and with tokenizer.json it has 256"),
        ({"9": entry("h")}, "'h' the id 9, and with tokenizer.json it has 71"),
    ]:
        write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
        with pytest.raises(ValueError, match=r"tokenizer_config\.json gives") as error:
            read_tokenizer_json(tmp_path)
        assert message in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": entry("a")}},
        {"added_tokens_decoder": {"256": 7}},
        {"added_tokens_decoder": {"256": {"content": ""}}},
        {"added_tokens_decoder": {"256": {"content": None}}},
        {"added_tokens_decoder": {"256": {"content": "a\ud800"}}},
        {"additional_special_tokens": "abc"},
        {"additional_special_tokens": [7]},
        {"extra_special_tokens": 7},
    ],
)
def test_damaged_files_are_named(tmp_path, fields):
    write(tmp_path, tokenizer_config=fields)
    if fields == {"added_tokens_decoder": []}:  # as good as none
        assert read_tokenizer_json(tmp_path) is not None
        return
    with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
        read_tokenizer_json(tmp_path)
    write(tmp_path, tokenizer_config={}, added_tokens={"a": "1"})
    with pytest.raises(ValueError, match=r"added_tokens\.json: ids must be integers"):
        read_tokenizer_json(tmp_path)


def test_a_chat_template_gets_its_control_tokens(tmp_path):
    """Without the token, its text came as characters, and its row was masked as padding."""
    source = tmp_path / "source"
    source.mkdir()
    write_config(source, eos_token_id=200)
    write_shards(source, {"model.safetensors": {name: RANDOM.tensor(name) for name in NAMES}})
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    decoder = {"200": entry("<|im_start|>"), "201": entry("<|im_end|>")}
    config = {"added_tokens_decoder": decoder, "chat_template": template}
    config["eos_token"] = "<|im_end|>"
    write(source, 200, tokenizer_config=config)
    notes = []
    text = ModelText.load(compile_model(source, tmp_path / "model", note=notes.append))
    tokens = text.encode_chat("a")
    assert tokens[0] == 200 and tokens[-1] == 201 and len(tokens) == 3
    assert "54 of the model's 256 ids are no tokens" in notes[0]
