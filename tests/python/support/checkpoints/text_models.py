"""Small tokenizers of every kind, a model directory of them, texts in many scripts."""

from __future__ import annotations

import json
import os
import random

import pytest

pytest.importorskip("tokenizers")

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = "the cat sat on a mat; Hello world! def f(x): return 12 na\u00efve \u00fcber \u6f22\u5b57"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LONG = bool(os.environ.get("KVCTL_LONG_TESTS"))


def counted(full):
    """The number of cases: all of them with KVCTL_LONG_TESTS, a tenth otherwise."""
    return full if LONG else full // 10


def byte_tokens():
    """One token per byte: every character beyond ASCII comes in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool> \u00e9"])
    return tokenizer


def byte_level():
    """Byte-level BPE as GPT-2, Llama 3 and SmolLM2 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([WORDS] * 20, trainer)
    return tokenizer


def byte_fallback():
    """BPE with byte tokens as Llama 2 and Mistral have it: a prefix space, BOS before a text."""
    pieces = sorted({*WORDS.replace(" ", "\u2581"), "\u2581", "\n", ".", "!"})
    merged = ["\u2581t", "\u2581th", "\u2581the", "ca", "cat", "\u2581c", "\u2581\u2581"]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *pieces, *merged])}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("c", "a"), ("ca", "t")]
    merges += [("\u2581", "c"), ("\u2581", "\u2581")]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram():
    """Unigram with byte tokens as Gemma's and T5's kin have it, its spaces by Metaspace."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(token, -9.0) for token in BYTES]
    letters = sorted({*WORDS.replace(" ", ""), "\u2581"})
    pieces += [(letter, -5.0) for letter in letters]
    pieces += [("\u2581the", -2.0), ("\u2581cat", -2.0), ("\u2581", -3.0), ("ing", -3.0)][::1]
    seen = dict(pieces)
    tokenizer = Tokenizer(models.Unigram(list(seen.items()), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_piece():
    """WordPiece as BERT has it."""
    letters = sorted({*WORDS.lower().replace(" ", "")})
    tokens = ["[UNK]", *SPECIAL, *letters, *(f"##{c}" for c in letters), "the", "##at", "don", "'"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "n't", ".", "?", ","]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_ends():
    """BPE whose words end in a suffix, as CLIP's and old GPT's do."""
    pieces = ["a", "b", "c", "ab", "a</w>", "b</w>", "c</w>", "ab</w>", "x</w>y</w>"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*SPECIAL, *pieces])}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _words(decoder):
    pieces = ["a", " b", "  ", "\u2581c", "<0xE2>", "<0x82>", "<0xAC>", "<0x+F>", "", "|", "<pad>"]
    tokens = [*SPECIAL, *pieces, "\u00e9", "a ", " \u2581 "]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, "<unk>"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


# Chains that no model may have, and that a file may hold.
CHAINS = {
    "none": None,
    "ctc": decoders.CTC(),
    "fused_replace": decoders.Sequence([decoders.Fuse(), decoders.Replace("a ", "X")]),
    "strip_both": decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 3)]),
    "each_strip": decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]),
    "regex": decoders.Sequence([decoders.Replace(Regex(" +"), "_"), decoders.Metaspace()]),
    "bytes_last": decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()]),
    "level_then_strip": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 1)]),
    "fallback_ends": decoders.Sequence([decoders.ByteFallback(), decoders.BPEDecoder(" ")]),
}

KINDS = {
    "byte_tokens": byte_tokens,
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "word_piece": word_piece,
    "word_ends": word_ends,
    **{name: lambda decoder=decoder: _words(decoder) for name, decoder in CHAINS.items()},
}

# Beginnings and ends of blocks of scripts.
_SCRIPTS = [
    (0x20, 0x7E),
    (0xA1, 0x17F),
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x5D0, 0x5EA),
    (0x621, 0x64A),
    (0x905, 0x939),
    (0xE01, 0xE30),
    (0x1100, 0x1112),
    (0x3041, 0x3096),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x20000, 0x2A6D6),
    (0x300, 0x36F),
    (0xFE00, 0xFE0F),
]
_EXTRA = ["\n", "\t", "\r\n", "  ", "\u200d", "\ufffd", "\u00a0", "\u2581", "<0xE2>", "\0"]


def random_text(rng: random.Random) -> str:
    """Words of several scripts, spaces, joiners, emoji, odd characters."""
    parts = []
    for _ in range(rng.randrange(1, 8)):
        low, high = rng.choice(_SCRIPTS)
        parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 7))))
        parts.append(rng.choice(_EXTRA) if rng.random() < 0.2 else " ")
    return "".join(parts)


def write_model_text(directory, library, fields):
    """Write what `ModelText.load` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    library.save(str(directory / "tokenizer.json"))
    (directory / "mlc-chat-config.json").write_text(json.dumps(fields), encoding="utf-8")
    return directory


def pieces_of(rng: random.Random, tokens):
    """Cut tokens into pieces of any size."""
    begin = 0
    while begin < len(tokens):
        end = begin + rng.choice([0, 1, 1, 1, 2, 5])
        yield tokens[begin:end]
        begin = end
