"""Rebuild a model's tokenizer from the metadata of its GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._ffi.untrusted import reading
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
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "the GGUF file") -> str:
    """Return the ``tokenizer.json`` of a byte-level BPE.

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
        return _rebuild(metadata, where)


def _rebuild(metadata: Mapping[str, Any], where: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or (pre != "default" and pre not in _BYTE_LEVEL):
        raise ValueError(
            f"{where}: kvctl rebuilds byte-level BPE tokenizers (default, "
            f"{', '.join(_BYTE_LEVEL)}), not '{kind!s:.60}' with '{pre!s:.60}': put "
            "the model's tokenizer.json beside the GGUF file"
        )
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
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and isinstance(bos, int) and bos < len(tokens):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return str(tokenizer.to_str())


def _pre_tokenizer(pre: str) -> Any:
    """Return what splits text before merging, by llama.cpp's name for it."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre == "default":
        splits = [Split(Regex(pattern), "isolated") for pattern in _DEFAULT]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), gpt2]) if _BYTE_LEVEL[pre] else gpt2
