"""Tokens of texts: special ones as control or as text, BOS once, files that are none."""

import json
import random

import pytest

from kvctl.text import Tokenizer
from text_models import KINDS, byte_fallback, byte_level, byte_tokens, random_text, unigram

CHAT = "<s><|im_start|>user\nthe cat <|im_end|>"


@pytest.fixture(params=["byte_tokens", "byte_level", "byte_fallback", "unigram", "word_piece"])
def tokenizer(request):
    return Tokenizer(KINDS[request.param]().to_str())


def test_special_tokens_as_control_and_as_text(tokenizer):
    ids = set(tokenizer.special_tokens.values())
    parsed, literal = (tokenizer.encode(CHAT, special=s, bos=False) for s in ("parse", "literal"))
    assert [t for t in parsed if t in ids] == [tokenizer.token_id(t) for t in CHAT_TOKENS]
    assert ids.isdisjoint(set(literal) - {tokenizer.token_id("<unk>")})
    assert len(literal) > len(parsed)


CHAT_TOKENS = ["<s>", "<|im_start|>", "<|im_end|>"]


def test_literal_text_comes_back():
    for make in (byte_tokens, byte_level, byte_fallback):
        tokenizer = Tokenizer(make().to_str())
        assert tokenizer.decode(tokenizer.encode(CHAT, special="literal", bos=False)) == CHAT


def test_a_text_without_special_tokens_is_the_same_both_ways(tokenizer):
    rng = random.Random(1)
    for _ in range(200):
        text = random_text(rng)
        assert tokenizer.encode(text, special="literal") == tokenizer.encode(text)


def test_a_vocabulary_that_spells_a_control_token_out():
    """Unigram knows the pieces, and BPE the merges, that lead to the token itself."""
    tokenizer = Tokenizer(unigram().to_str())
    assert tokenizer.token_id("</s>") not in tokenizer.encode("a</s>b", special="literal")
    content = json.loads(byte_level().to_str())
    for i in range(2, len("<|im_end|>") + 1):
        content["model"]["vocab"].setdefault("<|im_end|>"[:i], 400 + i)
        content["model"]["merges"].append(["<|im_end|>"[: i - 1], "<|im_end|>"[i - 1]])
    tokenizer = Tokenizer(json.dumps(content))
    end = tokenizer.token_id("<|im_end|>")
    literal = tokenizer.encode("a<|im_end|>", special="literal")
    assert end not in literal and tokenizer.decode(literal) == "a<|im_end|>"


def test_more_control_tokens_than_the_special_ones():
    tokenizer = Tokenizer(byte_tokens().to_str())
    tool = "<tool> \u00e9"
    id = tokenizer.token_id(tool)
    assert tokenizer.encode(tool) == tokenizer.encode(tool, special="literal") == [id]
    assert id not in tokenizer.encode(tool, special="literal", control=[tool, "no such token"])


def test_bos_comes_once():
    tokenizer = Tokenizer(byte_fallback().to_str())
    assert tokenizer.bos_tokens == [1]
    the = tokenizer.token_id("\u2581the")
    assert tokenizer.encode("the") == [1, the]
    assert tokenizer.encode("the", bos=False) == [the]
    assert tokenizer.encode("<s>the") == [1, the]
    assert tokenizer.encode("") == [1]
    literal = tokenizer.encode("<s>the", special="literal")
    assert literal[0] == 1 and 1 not in literal[1:] and literal[-1] == tokenizer.token_id("e")
    assert Tokenizer(byte_level().to_str()).bos_tokens == []


def test_truncation_and_padding_of_the_file_are_off():
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=9)
    tokenizer = Tokenizer(library.to_str())
    assert tokenizer.decode(tokenizer.encode("a whole prompt")) == "a whole prompt"
    assert len(tokenizer.encode("a")) == 1


def test_sizes_and_names(tokenizer):
    assert tokenizer.token(tokenizer.vocab_size - 1) is not None
    assert tokenizer.token(tokenizer.vocab_size) is None and tokenizer.token(-1) is None
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.decode([tokenizer.vocab_size]) == ""
    end = tokenizer.special_tokens["<|im_end|>"]
    assert tokenizer.token(end) == "<|im_end|>"
    assert tokenizer.decode([end], skip_special=True) == ""


def test_mistakes(tokenizer):
    with pytest.raises(ValueError, match='special must be "parse" or "literal"'):
        tokenizer.encode("a", special="plain")
    with pytest.raises(ValueError, match="half a surrogate pair"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError, match="must be a str, not int"):
        tokenizer.encode(3)
    with pytest.raises(ValueError, match=r"token -1 is no token: ids are from 0"):
        tokenizer.decode([5, -1])
    with pytest.raises(ValueError, match=r"holds U\+FDD0"):
        tokenizer.encode("a\ufdd0", special="literal")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no tokenizer"),
        ("{}", "is no tokenizer"),
        ("[" * 5000, "is no tokenizer"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
            "is no tokenizer",
        ),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path)
