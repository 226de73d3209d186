"""Tokenizers rebuilt from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import tokenizers

from kvctl.models.checkpoints.tokens.tokenizer import tokenizer_from_gguf

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|im_start|>", "<|im_end|>", *BYTES, "12", "he", "llo", "Ġhe", "hello"]
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * (len(TOKENS) - 2)],
    "tokenizer.ggml.merges": ["h e", "l l", "ll o", "Ġ he", "he llo", "1 2"],
    "tokenizer.ggml.bos_token_id": 0,
}
METADATA["tokenizer.ggml.tokens"].insert(-1, "ll")
METADATA["tokenizer.ggml.token_type"].append(1)


def build(**changes):
    metadata = {**METADATA, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    return tokenizers.Tokenizer.from_str(tokenizer_from_gguf(metadata))


def test_merges_and_special_tokens():
    encoding = build().encode("<|im_start|>hello he12<|im_end|>")
    assert encoding.tokens == ["<|im_start|>", "hello", "Ġhe", "1", "2", "<|im_end|>"]


def test_digits_stand_alone_only_where_the_model_says_so():
    assert build(pre="gpt-2").encode("12").tokens == ["12"]
    assert build(pre="smollm").encode("12").tokens == ["1", "2"]


def pieces(pre, text):
    """Return what text is split into before merging."""
    metadata = {k: v for k, v in METADATA.items() if k != "tokenizer.ggml.pre"}
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = pre
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_from_gguf(metadata))
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", ["default", None])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("it's", ["it", "'", "s"]),
        ("we'll", ["we", "'", "ll"]),
        ("a+b=c", ["a", "+", "b", "=", "c"]),
        ("x  y", ["x", "Ġ", "Ġy"]),
        (" 12345", ["Ġ", "123", "45"]),
        ("Hi, you!?", ["Hi", ",", "Ġyou", "!?"]),
        ("a\n\nb", ["a", "Ċ", "Ċ", "b"]),
    ],
)
def test_l10_the_default_split_is_that_of_llama_cpp(pre, text, wanted):
    """Four patterns in turn, as llama.cpp has them where a file names no other or "default"."""
    assert pieces(pre, text) == wanted


def test_l10_the_split_of_gpt2_is_another():
    assert pieces("gpt-2", "it's 12345") == ["it", "'s", "Ġ12345"]


@pytest.mark.parametrize(
    ("pre", "text", "wanted"),
    [
        ("llama-bpe", "it's 12345!", ["it", "'s", "Ġ", "123", "45", "!"]),
        ("qwen2", "it's 123", ["it", "'s", "Ġ", "1", "2", "3"]),
        ("llama-bpe", "WE'LL go\n\n now", ["WE", "'LL", "Ġgo", "ĊĊ", "Ġnow"]),
        ("qwen2", "a.b  (c)\n", ["a", ".b", "Ġ", "Ġ(", "c", ")Ċ"]),
        ("llama3", "x\t\ty", ["x", "ĉ", "ĉy"]),
    ],
)
def test_splits_of_llama_3_and_qwen(pre, text, wanted):
    assert pieces(pre, text) == wanted


def test_llama_3_takes_a_word_that_is_a_token():
    changes = {"merges": ["h e", "l l", "ll o", "Ġ he"], "bos_token_id": 0}
    assert build(**changes, pre="qwen2").encode("hello").tokens == ["he", "llo"]
    encoding = build(**changes, pre="llama-bpe").encode("hello")
    assert encoding.tokens == ["<|im_start|>", "hello"]  # and its texts begin with BOS


SENTENCEPIECE = Path(__file__).parent / "sentencepiece"


@pytest.mark.parametrize("kind", ["prefix", "plain"])
def test_sentencepiece(kind):
    """What SentencePiece itself encodes and decodes."""
    fixture = json.loads((SENTENCEPIECE / f"{kind}.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_from_gguf(fixture["metadata"]))
    for text, ids in fixture["ids"].items():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert encoding.ids == ids, (text, encoding.tokens)
        assert tokenizer.decode(ids) == text
    begin = fixture["metadata"]["tokenizer.ggml.bos_token_id"]
    assert tokenizer.encode("the").ids[0] == begin
    assert tokenizer.encode("<start>the").ids[1] == tokenizer.token_to_id("<start>")


def test_sentencepiece_that_normalises_is_refused():
    text = (SENTENCEPIECE / "plain.json").read_text(encoding="utf-8")
    metadata = json.loads(text)["metadata"]
    with pytest.raises(ValueError, match="does not rebuild tokenizers that normalise characters"):
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.precompiled_charsmap": [1, 2]})


def test_padding_is_no_token():
    tokens = [*TOKENS, f"[PAD{len(TOKENS)}]", "left over"]
    tokenizer = build(tokens=tokens, token_type=[1] * (len(tokens) - 1) + [5])
    assert tokenizer.get_vocab_size() == len(TOKENS)


@pytest.mark.parametrize("text", ["héllo wörld", "漢字 🙂\n\ttab", "  spaces  ", ""])
def test_any_text_comes_back(text):
    tokenizer = build()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_model_that_wants_a_first_token_gets_it():
    assert build(add_bos_token=True).encode("he").tokens == ["<|im_start|>", "he"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, r"not 'bert' .* put the model's tokenizer\.json beside"),
        ({"pre": "gpt-4o"}, "'gpt2' with 'gpt-4o'"),
        ({"model": "llama"}, "tokens, scores or types are missing"),
        ({"model": "llama", "scores": [0.0]}, "tokens, scores or types are missing"),
        ({"tokens": []}, "tokens or merges are missing"),
        ({"merges": ["a b c"]}, "a merge that is not a pair"),
        ({"merges": ["h x"]}, "merges 'h' and 'x', and one of the two or the result is none"),
        ({"merges": [["h", "e"]]}, "the GGUF file's tokenizer is damaged"),
        ({"tokens": 5}, "the GGUF file's tokenizer is damaged"),
        ({"pre": ["smollm"]}, "the GGUF file's tokenizer is damaged"),
    ],
)
def test_other_tokenizers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
