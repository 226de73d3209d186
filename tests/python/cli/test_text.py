import json

import pytest

tokenizers = pytest.importorskip("tokenizers")

from kvctl.cli.text import ModelText  # noqa: E402

TEMPLATE = {
    "system_template": "<sys>{system_message}</sys>",
    "system_message": "Be kind.",
    "roles": {"user": "<user>", "assistant": "<bot>"},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "seps": ["<end>"],
    "role_content_sep": ":",
    "role_empty_sep": ":",
    "stop_token_ids": [7],
}


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token per byte: every character beyond ASCII comes in pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def model_dir(tmp_path, byte_tokenizer):
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token_id": 2, "conv_template": TEMPLATE}
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps(config))
    return tmp_path


def test_pieces_of_characters_are_held_back(model_dir):
    text = ModelText(model_dir)
    stream = text.stream()
    whole = "a\u00e9\u20ac\U0001f600 z"
    pieces = [stream.push([token]) for token in text.encode(whole)]
    assert "".join(pieces) + stream.finish() == whole
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[0] == "a" and pieces[1] == "" and pieces[2] == "\u00e9"


def test_many_tokens_at_once_are_the_same(model_dir):
    text = ModelText(model_dir)
    stream = text.stream()
    tokens = text.encode("na\u00efve \u20ac5")
    assert stream.push(tokens[:4]) + stream.push(tokens[4:]) == "na\u00efve \u20ac5"


def test_broken_characters_come_out_in_the_end(model_dir):
    text = ModelText(model_dir)
    stream = text.stream()
    broken = text.encode("\u20ac")[:2]
    assert stream.push(broken) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    continuation_bytes = text.encode("\u20ac")[1:2] * 8
    assert len(stream.push(continuation_bytes)) > 0  # never held back for ever


def test_chat_follows_the_template(model_dir):
    text = ModelText(model_dir)
    assert text.chat("Hi") == "<sys>Be kind.</sys><user>:Hi<end><bot>:"
    assert text.chat("{x}", system="No.") == "<sys>No.</sys><user>:{x}<end><bot>:"
    assert text.chat("Hi", system="") == "<user>:Hi<end><bot>:"
    assert text.stop_tokens == {2, 7}


def test_without_a_template(model_dir):
    (model_dir / "mlc-chat-config.json").write_text('{"eos_token_id": [3, 4]}')
    text = ModelText(model_dir)
    assert not text.has_template and text.stop_tokens == {3, 4}
    with pytest.raises(ValueError, match="no chat template: use --raw"):
        text.chat("Hi")


def test_missing_files_are_named(model_dir):
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        ModelText(model_dir)
