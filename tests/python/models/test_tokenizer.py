"""Tokenizers rebuilt from GGUF metadata."""

from __future__ import annotations

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import tokenizers

from kvctl.models.checkpoints.tokenizer import tokenizer_from_gguf

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
        ({"model": "llama"}, r"not 'llama' .* put the model's tokenizer\.json beside"),
        ({"pre": "qwen2"}, "'gpt2' with 'qwen2'"),
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
