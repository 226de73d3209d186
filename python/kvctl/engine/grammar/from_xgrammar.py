"""Grammars of xgrammar for a model (an optional dependency: ``pip install kvctl[grammar]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..protocol import Runner


def xgrammar_compiler(runner: Runner) -> Any:
    """Return a compiler of grammars over a model's vocabulary.

    Its tokens are those of the model's tokenizer, by the bytes that they stand for. Control tokens
    stand for none, so no grammar allows them, but for the model's stop tokens at its end.

    Parameters
    ----------
    runner
        The model, with a tokenizer and stop tokens.

    Returns
    -------
    xgrammar.GrammarCompiler
        For instance, ``xgrammar.GrammarMatcher(compiler.compile_json_schema(schema))`` is a
        `Grammar`.

    Raises
    ------
    ImportError
        If xgrammar is not installed.
    FileNotFoundError
        If the model came without a tokenizer.
    ValueError
        If nothing says which tokens end the model's turn.
    """
    try:
        import xgrammar
    except ImportError as error:
        raise ImportError(
            "grammars are compiled by xgrammar, which is not installed: pip install kvctl[grammar]"
        ) from error
    tokenizer, stops = runner.text.tokenizer, sorted(runner.stop_tokens)
    if not stops:
        raise ValueError("a grammar needs a token to end with, and the model names no stop tokens")
    known = min(tokenizer.vocab_size, runner.vocab_size)
    content = [tokenizer.token_bytes(id) or b"" for id in range(known)]
    content += [b""] * (runner.vocab_size - known)
    info = xgrammar.TokenizerInfo(
        content,
        xgrammar.VocabType.RAW,
        vocab_size=runner.vocab_size,
        stop_token_ids=stops,
    )
    return xgrammar.GrammarCompiler(info)
