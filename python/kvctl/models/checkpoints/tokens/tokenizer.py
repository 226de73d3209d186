"""Rebuild a model's tokenizer from the metadata of its GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...._ffi.untrusted import reading
from .vocabulary import is_padding

# GPT-2's split of text before merging, by llama.cpp's names for it, and whether every digit stands
# alone first.
_BYTE_LEVEL = {"gpt-2": False, "smollm": True, "starcoder": True, "refact": True}
# What llama.cpp splits by, one after the other, where a file says "default" or nothing: punctuation
# comes first, so that "'s" is two pieces.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# One pattern of today's models, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_PATTERNS = {**dict.fromkeys(_LLAMA3, _WORDS % "{1,3}"), "qwen2": _WORDS % ""}
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "\u2581"


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "the GGUF file") -> str:
    """Return the ``tokenizer.json`` of a byte-level BPE, or of a BPE of SentencePiece.

    Parameters
    ----------
    metadata : mapping
        Of a GGUF file, with the keys ``tokenizer.ggml.*``.
    where : str
        What messages call the file.

    Raises
    ------
    ValueError
        If the tokenizer is of another kind, or incomplete.
    """
    with reading(f"{where}'s tokenizer"):
        kind = metadata.get("tokenizer.ggml.model")
        pre = metadata.get("tokenizer.ggml.pre", "default")
        if kind == "llama":
            tokenizer = _sentencepiece(metadata, where)
        elif kind == "gpt2" and (pre in ("default", *_PATTERNS) or pre in _BYTE_LEVEL):
            tokenizer = _byte_level(metadata, pre, where)
        else:
            known = ", ".join((*_BYTE_LEVEL, *_PATTERNS))
            raise ValueError(
                f"{where}: kvctl rebuilds byte-level BPE tokenizers (default, {known}) and those "
                f"of SentencePiece, not '{kind!s:.60}' with '{pre!s:.60}': put the model's "
                "tokenizer.json beside the GGUF file"
            )
        # llama.cpp's own defaults, where the file does not say.
        begins = kind == "llama" or pre in _LLAMA3
        _put_first(tokenizer, metadata, begins)
        return str(tokenizer.to_str())


def _byte_level(metadata: Mapping[str, Any], pre: str, where: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, merges = (metadata.get(f"tokenizer.ggml.{part}") for part in ("tokens", "merges"))
    if not tokens or not isinstance(merges, list):
        raise ValueError(f"{where} holds no whole tokenizer: tokens or merges are missing")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{where}'s tokenizer has a merge that is not a pair")
    known = set(tokens)
    for left, right in pairs:
        if not {left, right, left + right} <= known:
            raise ValueError(
                f"{where}'s tokenizer merges {left!r} and {right!r}, and one of the two or "
                "the result is none of its tokens"
            )
    types = metadata.get("tokenizer.ggml.token_type", [])
    vocab = {token: i for i, token in enumerate(tokens) if not is_padding(i, token, types)}
    # Llama 3 takes a word that is a token as it stands, whatever its merges are.
    model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _LLAMA3)
    tokenizer = Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], where: str) -> Any:
    """Rebuild a BPE whose pieces have scores: the piece of the highest score is merged first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    parts = (metadata.get(f"tokenizer.ggml.{one}") for one in ("tokens", "scores", "token_type"))
    tokens, scores, types = (part if isinstance(part, list) else [] for part in parts)
    if not tokens or not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{where} holds no whole tokenizer: tokens, scores or types are missing")
    if metadata.get("tokenizer.ggml.precompiled_charsmap") is not None:
        raise ValueError(f"{where}: kvctl does not rebuild tokenizers that normalise characters")
    vocab = {token: i for i, token in enumerate(tokens) if not is_padding(i, token, types)}
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    merges = _merges(vocab, scores, types)
    model = models.BPE(vocab, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for token, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            # Runs of spaces are such tokens, and become visible by the normaliser alone.
            visible = AddedToken(token, special=False, normalized=not prefix)
            tokenizer.add_tokens([visible])
    return tokenizer


def _merges(vocab: Mapping[str, int], scores: list[float], types: list[int]) -> list[Any]:
    """Return all pairs of pieces that make a piece, the piece of the highest score first."""
    found = []
    for piece, index in vocab.items():
        if types[index] in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            continue
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(-scores[index], index, pair) for pair in pairs]
    found.sort(key=lambda entry: entry[:2])
    return [pair for _, _, pair in found]


def _put_first(tokenizer: Any, metadata: Mapping[str, Any], default: bool) -> None:
    """Let a text begin with the token that the file names."""
    from tokenizers import processors

    tokens = metadata["tokenizer.ggml.tokens"]
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", default) and isinstance(bos, int):
        if 0 <= bos < len(tokens):
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
            )


def _pre_tokenizer(pre: str) -> Any:
    """Return what splits text before merging, by llama.cpp's name for it."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre == "default":
        splits = [Split(Regex(pattern), "isolated") for pattern in _DEFAULT]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre in _PATTERNS:
        split = Split(Regex(_PATTERNS[pre]), "isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), gpt2]) if _BYTE_LEVEL[pre] else gpt2
