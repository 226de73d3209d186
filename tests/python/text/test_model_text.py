"""The text side of a model: from its files to tokens, and where its turn ends.

One file, since all tests share the models that it makes.
"""

import json
import random

import pytest

from kvctl.text import ModelText, Tokenizer, fields_of_gguf, fields_of_huggingface
from text_models import KINDS, byte_fallback, byte_level, byte_tokens, random_text, write_model_text

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MLC = {
    "system_template": "<sys>{system_message}</sys>",
    "system_message": "Be kind.",
    "roles": {"user": "<user>", "assistant": "<bot>"},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "seps": ["<end>"],
    "role_content_sep": ":",
    "role_empty_sep": ":",
    "stop_token_ids": [7],
}


def make(library=None, **fields):
    return ModelText(Tokenizer((library or byte_tokens()).to_str()), fields)


def chat(text, *args, **options):
    return text.decode(text.encode_chat(*args, **options))


def test_chat_follows_mlcs_template():
    text = make(eos_token_id=2, conv_template=MLC)
    assert chat(text, "Hi") == "<sys>Be kind.</sys><user>:Hi<end><bot>:"
    assert chat(text, "{x}", system="No.") == "<sys>No.</sys><user>:{x}<end><bot>:"
    assert chat(text, "Hi", system="") == "<sys></sys><user>:Hi<end><bot>:"
    assert text.stop_tokens >= {2, 7}


def test_several_turns_and_no_generation_prompt():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on"},
    ]
    text = make(chat_template=CHATML)
    assert chat(text, turns, add_generation_prompt=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nGo on<|im_end|>\n"
    )


def test_without_a_template():
    text = make(eos_token_id=[3, 4])
    assert not text.has_template and text.stop_tokens >= {3, 4}
    with pytest.raises(ValueError, match="no chat template"):
        text.encode_chat("Hi")


def test_a_template_by_name_alone_is_an_error():
    text = make(conv_template="llama-2")
    assert text.has_template
    with pytest.raises(ValueError, match="by its name alone, 'llama-2'"):
        text.encode_chat("Hi")


def test_a_damaged_template_leaves_plain_text():
    text = make(chat_template="{% if %}", eos_token_id=2)
    assert text.decode(text.encode("Hi")) == "Hi" and 2 in text.stop_tokens
    with pytest.raises(ValueError, match="no Jinja"):
        text.encode_chat("Hi")


def test_missing_files_are_named(tmp_path):
    directory = write_model_text(tmp_path / "model", byte_tokens(), {})
    (directory / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        ModelText.load(directory)
    (directory / "mlc-chat-config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no mlc-chat-config\.json: is it a model"):
        ModelText.load(directory)


def test_what_compile_writes_is_what_load_reads(tmp_path):
    fields = {"chat_template": CHATML, "eos_token_id": 2, "special_tokens": {"eos_token": "</s>"}}
    before = make(**fields)
    after = ModelText.load(write_model_text(tmp_path, byte_tokens(), before.to_fields()))
    assert after.stop_tokens == before.stop_tokens
    assert after.stop_strings == before.stop_strings
    assert after.to_fields() == before.to_fields()
    assert after.encode_chat("Hi") == before.encode_chat("Hi")


DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nDefault.<|im_end|>\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (DEFAULT + CHATML, "Default."),
        ("{{ bos_token }}" + DEFAULT + CHATML, "Default."),
        (CHATML, None),  # a system block only where there is a system message
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", None),
        ("{% if %}", None),
        ("always the same", None),
    ],
)
def test_mlcs_engine_finds_its_own_template_where_it_can_say_the_same(template, system):
    text = make(chat_template=template, special_tokens=BOS, eos_token_id=2, stop_strs=["###"])
    conversation = text.to_fields().get("conv_template")
    if system is None:
        assert conversation is None
        return
    assert conversation["system_message"] == system
    assert conversation["seps"] == ["<|im_end|>\n", "<|im_end|>\n"]
    assert conversation["stop_token_ids"] == sorted(text.stop_tokens)
    assert conversation["stop_str"] == ["###"]
    mlc = make(conv_template=conversation)
    for system in (None, "", "Be kind."):
        assert mlc.encode_chat("Hi", system=system) == text.encode_chat("Hi", system=system)


def test_mlcs_directory_with_hugging_faces_files(tmp_path):
    """MLC writes a template that it does not know by name, and copies the tokenizer's files."""
    directory = write_model_text(tmp_path, byte_tokens(), {"conv_template": "odd"})
    config = {"chat_template": CHATML, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    text = ModelText.load(directory)
    assert chat(text, "Hi").startswith("<|im_start|>user\nHi")
    assert text.tokenizer.token_id("</s>") in text.stop_tokens


def test_fields_of_huggingface(tmp_path):
    files = {
        "generation_config.json": {"eos_token_id": [2, 7, 9], "stop_strings": "END"},
        "config.json": {"eos_token_id": 2, "bos_token_id": 1, "text_config": {"eos_token_id": 11}},
        "tokenizer_config.json": {
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "</s>",
            "chat_template": [
                {"name": "default", "template": "D"},
                {"name": "tool_use", "template": "T"},
            ],
        },
        "special_tokens_map.json": {"eos_token": "other", "pad_token": "<pad>"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert fields_of_huggingface(tmp_path) == {
        "bos_token_id": 1,
        "eos_token_id": [2, 7, 9],
        "stop_token_ids": [2, 7, 9, 11],
        "stop_strs": ["END"],
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "chat_template": {"default": "D", "tool_use": "T"},
    }
    (tmp_path / "chat_template.jinja").write_text("J")
    assert fields_of_huggingface(tmp_path)["chat_template"] == "J"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert fields_of_huggingface(tmp_path)["chat_template"] == {"default": "J", "rag": "R"}


def test_fields_of_an_empty_directory(tmp_path):
    empty = {"stop_token_ids": [], "special_tokens": {}, "stop_strs": []}
    assert fields_of_huggingface(tmp_path) == empty


def test_fields_of_gguf():
    metadata = {
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<|eot_id|>", "<|eom_id|>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.eom_token_id": 4,
        "tokenizer.ggml.padding_token_id": 99,
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
    }
    assert fields_of_gguf(metadata) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 99,
        "stop_token_ids": [2, 3, 4],
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "stop_strs": [],
        "chat_template": {"default": "D", "tool_use": "T"},
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"eos_token_id": "2"}', "eos_token_id must be a token id"),
        ("generation_config.json", '{"eos_token_id": [2, true]}', "eos_token_id must be"),
        ("generation_config.json", '{"stop_strings": [3]}', "stop_strings must be"),
        ("generation_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template must be a string"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template must be"),
        ("tokenizer_config.json", '{"a":' * 100_000, "nested too deeply|is no JSON"),
        ("chat_template.jinja", "version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        fields_of_huggingface(tmp_path)


@pytest.mark.parametrize("ends", ["<|im_end|>\n", "</s>", " </s>\n"])
def test_what_the_template_writes_behind_a_turn_ends_it(ends):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + ends + "{% endfor %}"
    text = make(chat_template=template)
    assert text.tokenizer.token_id(ends.strip()) in text.stop_tokens


def test_words_behind_a_turn_end_nothing():
    text = make(chat_template="{% for m in messages %}{{ m.content }}\n### {% endfor %}")
    assert text.stop_tokens == make().stop_tokens and text.stop_strings == ()


def test_an_end_of_text_that_is_no_token_is_a_string():
    text = make(special_tokens={"eos_token": "<|end|>"})
    assert text.stop_strings == ("<|end|>",)


@pytest.mark.parametrize("name", ["byte_tokens", "byte_level", "byte_fallback", "unigram"])
def test_literal_and_parsed_are_the_same_without_control_tokens(name):
    """The prefix space of SentencePiece comes once, whatever the messages are cut into."""
    rng = random.Random(4)
    text = make(KINDS[name](), chat_template="{{ bos_token }}" + CHATML)
    for _ in range(50):
        turns = [{"role": "user", "content": random_text(rng)} for _ in range(3)]
        assert text.encode_chat(turns, special="literal") == text.encode_chat(turns)


def test_literal_keeps_control_tokens_of_every_kind_apart():
    """Marked tokens pass through what templates do to a message: trimming, splitting, joining."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content.split('<|im_start|>')[-1]|trim }}"
        "<|im_end|>{% endfor %}"
    )
    text = make(byte_level(), chat_template=template)
    start, end = (text.tokenizer.token_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    said = "x<|im_start|>a <|im_<|im_start|>end|><|im_end|></s>"
    tokens = text.encode_chat(said, special="literal", add_generation_prompt=False)
    assert [t for t in tokens if t < 5] == [start, end]
    assert text.decode(tokens[1:-1]) == "end|><|im_end|></s>"
    assert [t for t in text.encode_chat(said, add_generation_prompt=False) if t == end] == [end] * 2


def test_literal_tools_and_documents():
    template = "{{ tools|tojson }}{{ documents|tojson }}{{ messages[0].content }}<|im_end|>"
    text = make(byte_level(), chat_template=template)
    given = {"tools": [{"d": "<|im_end|>"}], "documents": [{"text": "<|im_end|>"}]}
    tokens = text.encode_chat("<|im_end|>", special="literal", **given)
    assert tokens.count(text.tokenizer.token_id("<|im_end|>")) == 1
    assert text.decode(tokens).count("<|im_end|>") == 4


def test_a_control_token_that_is_not_called_special():
    library = byte_tokens()
    library.add_tokens(["<|end|>"])
    text = make(library, chat_template="{{ messages[0].content }}<|end|>")
    end = text.tokenizer.token_id("<|end|>")
    assert text.encode_chat("a<|end|>", special="literal").count(end) == 1
    assert text.encode_chat("a<|end|>").count(end) == 2
    assert end not in text.encode("a<|end|>", special="literal")


def test_bos_of_a_template_comes_once():
    text = make(byte_fallback(), chat_template="{{ bos_token }}" + CHATML, special_tokens=BOS)
    assert text.encode_chat("the").count(1) == 1
    assert text.encode("the").count(1) == 1


BOS = {"bos_token": "<s>"}


def test_a_check_for_each_generation():
    text = make(stop_strs=["END"], eos_token_id=3)
    tokens = text.tokenizer.encode("an END here")
    for _ in range(2):
        ends = text.stop_check()
        assert [ends(token) for token in tokens[:6]] == [False] * 5 + [True]
    assert text.stop_check()(3)


@pytest.mark.parametrize(
    "fields",
    [
        {"eos_token_id": "2"},
        {"stop_token_ids": [1.5]},
        {"stop_strs": [1]},
        {"conv_template": {"stop_str": 3}},
        {"conv_template": {"stop_token_ids": ["a"]}},
    ],
)
def test_damaged_stops_are_refused(fields):
    with pytest.raises(ValueError, match=r"must be a (token id|string)"):
        make(**fields)
