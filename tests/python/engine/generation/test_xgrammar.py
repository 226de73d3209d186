"""Matchers of xgrammar in the loop."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import kvctl
from command_line import run
from fake_runner import VOCABULARY, FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import LookupDrafter, TokenRecyclingDrafter
from random_drafter import RandomDrafter

xgrammar = pytest.importorskip("xgrammar", reason="needs xgrammar: pip install 'kvctl[grammar]'")

LETTERS = [c.encode() for c in 'abcdefghijklmnopqrstuvwxyz{}[]":,012345'] + [b""]
STOP = VOCABULARY - 1
EBNF = r"""root ::= "{" pair ("," pair)* "}"
pair ::= "\"" [a-e] [a-e]? "\":" ("[" [0-3]* "]" | "no" | "yes")
"""
WHOLE = re.compile(r'\{("[a-e]{1,2}":(\[[0-3]*\]|no|yes),?)+(?<!,)\}')


@pytest.fixture(scope="module")
def compiled():
    info = xgrammar.TokenizerInfo(
        LETTERS, xgrammar.VocabType.RAW, vocab_size=VOCABULARY, stop_token_ids=[STOP]
    )
    return xgrammar.GrammarCompiler(info).compile_grammar(EBNF)


def words(matcher):
    mask = np.full((1, 2), -1, np.int32)
    matcher.fill_next_token_bitmask(mask)
    return mask.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_texts_are_those_without_drafts(compiled, seed):
    prompts = [[i, 3, i] for i in range(6)]
    options = {
        "max_new_tokens": 60,
        "sampling": [None, *[Sampling(temperature=1.0)] * 5],
        "seed": seed,
        "log_probs": True,
    }

    def texts(drafter, **pages):
        matchers = [xgrammar.GrammarMatcher(compiled) for _ in prompts]
        found = generate(FakeRunner(**pages), prompts, drafter=drafter, grammar=matchers, **options)
        for text, matcher in zip(found, matchers, strict=True):
            assert matcher.is_terminated() == (text.finish_reason == "grammar")
        return [(text.tokens, text.finish_reason, text.log_probs) for text in found]

    expected = texts(None)
    answers = {i: tokens for i, (tokens, _, _) in enumerate(expected)}
    for drafter in (
        LookupDrafter(length=5),
        TokenRecyclingDrafter(),
        RandomDrafter(seed, answers=answers, forced=True),
    ):
        assert texts(drafter) == expected
    drafter = RandomDrafter(seed, answers=answers, forced=True)
    assert texts(drafter, pages=8, page_size=8) == expected
    for tokens, reason, _ in expected:
        if reason == "grammar":
            assert tokens[-1] == STOP
            assert WHOLE.fullmatch(b"".join(LETTERS[token] for token in tokens).decode())
    assert any(reason == "grammar" for _, reason, _ in expected)


def test_a_stop_token_of_the_call_is_the_reason(compiled):
    for seed in range(20):
        text = generate(
            FakeRunner(),
            [1, 2],
            max_new_tokens=200,
            sampling=Sampling(temperature=1.0),
            seed=seed,
            grammar=xgrammar.GrammarMatcher(compiled),
            stop=[STOP],
        )
        assert text.finish_reason in ("stop_token", "length")
        assert (text.finish_reason == "stop_token") == (text.tokens[-1] == STOP)


def test_a_grammar_may_end_without_a_stop_token(compiled):
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    text = generate(
        FakeRunner(),
        [5],
        max_new_tokens=300,
        sampling=Sampling(temperature=1.0),
        grammar=matcher,
        drafter=LookupDrafter(length=4),
    )
    assert text.finish_reason == "grammar" and matcher.is_terminated()
    assert WHOLE.fullmatch(b"".join(LETTERS[token] for token in text.tokens).decode())


def test_where_the_call_raises_matchers_are_as_before(compiled):
    matcher, seen = xgrammar.GrammarMatcher(compiled), []
    assert matcher.accept_token(LETTERS.index(b"{"))
    before = words(matcher)

    def broken(tokens):
        seen.extend(tokens)
        if len(seen) > 8:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        generate(
            FakeRunner(),
            [5],
            grammar=matcher,
            drafter=LookupDrafter(length=4),
            on_tokens=broken,
        )
    assert words(matcher) == before
    matcher.reset()
    assert words(matcher) != before


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def test_json_of_a_model(smollm2):
    from kvctl.engine.grammar.from_xgrammar import xgrammar_compiler

    runner = kvctl.ModelRunner.load(smollm2)
    compiled = xgrammar_compiler(runner).compile_json_schema(json.dumps(SCHEMA))
    prompts = [runner.text.encode_chat(f"{who} as JSON.") for who in ("Anna, 31,", "Bob, 4,")]
    plain, drafted = (
        generate(
            runner,
            prompts,
            max_new_tokens=60,
            drafter=drafter,
            grammar=lambda: xgrammar.GrammarMatcher(compiled),
            stop=runner.stop_tokens,
        )
        for drafter in (None, LookupDrafter(length=4))
    )
    for one, two in zip(plain, drafted, strict=True):
        assert one.tokens == two.tokens and one.finish_reason == "stop_token"
        assert set(json.loads(runner.text.decode(one.tokens[:-1]))) == {"name", "age"}


def test_the_command_line(smollm2, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    done = run(
        "generate", smollm2, "Anna is 31.", "-n", "60", "--json-schema", tmp_path / "schema.json"
    )
    assert done.returncode == 0, done.stderr
    assert set(json.JSONDecoder().raw_decode(done.stdout)[0]) == {"name", "age"}
    (tmp_path / "grammar.ebnf").write_text('root ::= "yes" | "no"')
    done = run("generate", smollm2, "Is it?", "--grammar", tmp_path / "grammar.ebnf")
    assert done.returncode == 0 and done.stdout.startswith(("yes\n", "no\n"))
    (tmp_path / "wrong.ebnf").write_text("root ::= (")
    done = run("generate", smollm2, "Is it?", "--grammar", tmp_path / "wrong.ebnf")
    assert done.returncode == 1 and "wrong.ebnf" in done.stderr
