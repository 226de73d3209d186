"""Texts under a grammar: the same with and without drafts, whatever happens around them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fake_heads import SumHead, SumMedusa
from fake_runner import VOCABULARY, FakeRunner
from kvctl import Sampling, TokenTree, generate, sample
from kvctl.draft import (
    Draft,
    Drafter,
    HeadDrafter,
    LookupDrafter,
    MedusaDrafter,
    ScriptedDrafter,
    TokenRecyclingDrafter,
)
from random_drafter import RandomDrafter
from rule_grammar import RuleGrammar, random_rule

SAMPLINGS = [None, Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=5)]


def follows(rule, tokens):
    return all(token in rule(tokens[:i]) for i, token in enumerate(tokens))


def plain(prompt, rule, length, sampling=None, seed=0, request_id=0):
    """Decode token by token with masks, without the loop."""
    runner, tokens, new = FakeRunner(), list(prompt), []
    greedy = sampling or Sampling(temperature=0.0)
    while len(new) < length and (allowed := rule(new)) is not None:
        mask = np.zeros((1, 2), np.uint32)
        for token in allowed:
            mask[0, token // 32] |= np.uint32(1 << token % 32)
        [token] = sample(
            runner._rows([tokens]),
            sampling=greedy,
            seed=seed,
            request_ids=[request_id],
            positions=[len(tokens)],
            bitmask=mask.view(np.int32),
        )
        tokens.append(int(token))
        new.append(int(token))
    return new


@pytest.mark.parametrize("seed", range(60))
def test_texts_of_a_batch_are_those_of_plain_masked_sampling(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 6)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))] for _ in range(size)]
    rules = [random_rule(f"{seed}/{i}") if rng.random() < 0.8 else None for i in range(size)]
    samplings = [rng.choice(SAMPLINGS) for _ in range(size)]
    fatal = [rng.choice([None, rng.randrange(VOCABULARY)]) for _ in range(size)]
    stop = rng.sample(range(VOCABULARY), rng.choice([0, 0, 2]))

    def everything(tokens):
        return range(VOCABULARY)

    expected = []
    for i in range(size):
        text = plain(prompts[i], rules[i] or everything, 40, samplings[i], 3, i)
        ends = [j for j, token in enumerate(text) if token in stop or token == fatal[i]]
        expected.append(text[: ends[0] + 1] if ends else text)

    def run(drafter):
        grammars = [None if rule is None else RuleGrammar(rule) for rule in rules]
        runner = FakeRunner(pages=rng.randint(8, 30), chunk=rng.choice([8, 64]))
        found = generate(
            runner,
            prompts,
            max_new_tokens=40,
            drafter=drafter,
            grammar=grammars,
            sampling=samplings,
            seed=3,
            stop=stop,
            stop_when=[lambda token, one=one: token == one for one in fatal],
            log_probs=True,
        )
        assert not runner.cache.committed
        for text, grammar, rule in zip(found, grammars, rules, strict=True):
            if grammar is not None:
                assert grammar.tokens == text.tokens
                assert (text.finish_reason == "grammar") <= (rule(text.tokens) is None)
        return found

    answers = dict(enumerate(expected))
    texts = run(None)
    assert [text.tokens for text in texts] == expected
    for drafter in (
        LookupDrafter(length=4),
        LookupDrafter(),
        TokenRecyclingDrafter(nodes=8),
        RandomDrafter(seed, answers=answers, forced=True),
        RandomDrafter(seed, rates=False, answers=answers, hidden_layers=(1, 2), forced=True),
        LookupDrafter() | RandomDrafter(seed, answers=answers, forced=True),
        HeadDrafter(SumHead(), branching=2, beam=2, length=3),
        HeadDrafter(SumHead()) | LookupDrafter(),
        MedusaDrafter(SumMedusa()),
    ):
        got = run(drafter)
        assert [text.tokens for text in got] == expected
        assert [text.finish_reason for text in got] == [text.finish_reason for text in texts]
        assert [text.log_probs for text in got] == [text.log_probs for text in texts]


def test_sampled_texts_are_plain_seed_by_seed():
    prompts = [[i % VOCABULARY, i % 7] for i in range(200)]
    rules = [random_rule(i % 5, ends=0) for i in range(200)]
    options = {"max_new_tokens": 16, "sampling": SAMPLINGS[1], "seed": list(range(200))}
    expected, *drafted = (
        generate(
            FakeRunner(pages=2000, sequences=300),
            prompts,
            drafter=drafter,
            grammar=[RuleGrammar(rule) for rule in rules],
            rule="target_only",
            **options,
        )
        for drafter in (None, LookupDrafter(length=3), TokenRecyclingDrafter(nodes=6))
    )
    for texts in drafted:
        assert [text.tokens for text in texts] == [text.tokens for text in expected]
        assert sum(sum(text.statistics.accepted) for text in texts) > 200


def test_log_probs_are_of_the_masked_distribution():
    rule = random_rule(1, ends=0)
    for sampling in SAMPLINGS[:2]:
        text = generate(
            FakeRunner(),
            [3],
            max_new_tokens=30,
            grammar=RuleGrammar(rule),
            sampling=sampling,
            log_probs=True,
        )
        context, runner = [3], FakeRunner()
        for i, (token, log_prob) in enumerate(zip(text.tokens, text.log_probs, strict=True)):
            logits = runner._rows([context])[0].astype(np.float64)
            legal = sorted(rule(text.tokens[:i]))
            total = np.log(np.exp(logits[legal]).sum())
            assert abs(log_prob - (logits[token] - total)) < 1e-5
            context.append(token)


class Chain(Drafter):
    """Drafts the given tokens, whatever the text is, and keeps what it learns."""

    def __init__(self, tokens=(), rates=None):
        self.tokens, self.rates, self.results = tokens, rates, []

    def propose(self, requests, budget):
        chains = [[one.root, *self.tokens[: one.limit]] for one in requests]
        rates = [self.rates and self.rates[: len(chain)] for chain in chains]
        return [Draft(TokenTree.chain(c), rates=r) for c, r in zip(chains, rates, strict=True)]

    def observe(self, results):
        self.results += results


def sequence(*allowed):
    """Return a rule that allows these tokens at these places, and then ends."""
    return lambda tokens: allowed[len(tokens)] if len(tokens) < len(allowed) else None


def test_forced_tokens_come_without_a_drafter():
    rule = sequence({1, 2}, {5}, {6}, {7}, {8, 9}, {3})
    runner = FakeRunner()
    text = generate(runner, [0], max_new_tokens=20, grammar=RuleGrammar(rule))
    assert text.tokens[1:4] == [5, 6, 7] and text.tokens[5] == 3
    assert text.finish_reason == "grammar" and text.stopped
    # The prompt; then three forced tokens and a choice; then the last one.
    assert runner.forwards == [1, 4, 2]
    assert text.statistics.forced_tokens == 4


def test_forced_tokens_follow_a_drafters_own():
    rule = sequence({1}, {4, 5}, {6}, {7}, {8, 9}, {2, 3})
    drafter = Chain([5, 6])
    runner = FakeRunner(tokens_after=lambda context: [5, 8])
    text = generate(runner, [0], max_new_tokens=6, grammar=RuleGrammar(rule), drafter=drafter)
    assert text.tokens[:5] == [1, 5, 6, 7, 8]
    first = drafter.results[0]
    assert list(first.nodes) == [0, 1, 2] and first.accepted == [1, 2]
    assert first.emitted == [5, 6, 7, 8] and first.kept == [0, 1, 2, 3]
    assert first.draft.tree.tokens.tolist() == [1, 5, 6]


def test_illegal_drafts_are_not_verified():
    rule = sequence({1}, {4, 5}, {4, 5}, {4, 5}, {2, 3})
    drafter, runner = Chain([5, 9, 5, 5]), FakeRunner(tokens_after=lambda context: [5])
    text = generate(runner, [0], max_new_tokens=4, grammar=RuleGrammar(rule), drafter=drafter)
    assert text.tokens == [1, 5, 5, 5]
    assert runner.forwards[1] == 2 and list(drafter.results[0].nodes) == [0, 1]


def test_a_drafter_that_reads_what_follows_its_nodes_gets_all_of_them():
    rule = sequence({1}, {4, 5}, {4, 5}, {4, 5}, {2, 3})
    drafter, runner = Chain([5, 9]), FakeRunner(tokens_after=lambda context: [5])
    drafter.wants_logits = True
    text = generate(runner, [0], max_new_tokens=4, grammar=RuleGrammar(rule), drafter=drafter)
    assert text.tokens == [1, 5, 5, 5]
    assert list(drafter.results[0].nodes) == [0, 1, 2]
    assert all(len(one.logits) == len(one.nodes) for one in drafter.results)


def test_what_is_verified_stays_within_the_limit():
    rule = sequence({1}, *[{5}] * 30)
    for drafter in (None, Chain([5, 5, 5]), Chain([9] * 7), ScriptedDrafter([[1] + [5] * 30])):
        runner = FakeRunner(chunk=8)
        text = generate(runner, [0], max_new_tokens=20, grammar=RuleGrammar(rule), drafter=drafter)
        assert text.tokens == [1] + [5] * 19
        assert max(runner.forwards) == 8


def test_sure_nodes_are_verified_whatever_their_rates():
    rule = sequence({1}, {5}, {6}, {7, 8}, {2})
    drafter = Chain([5, 6, 7], rates=[1, 0.01, 0.005, 0.001])
    runner = FakeRunner()
    generate(runner, [0], max_new_tokens=5, grammar=RuleGrammar(rule), drafter=drafter)
    assert list(drafter.results[0].nodes[:3]) == [0, 1, 2] and runner.forwards[1] >= 3


@pytest.mark.parametrize("drafter", [None, "lookup", "random", "head", "medusa"])
def test_texts_that_wait_for_room_keep_their_grammar(drafter):
    rules = [random_rule(i, ends=0) for i in range(6)]
    prompts = [[5, 6, 7 + i] for i in range(6)]
    expected = [plain(p, rule, 100) for p, rule in zip(prompts, rules, strict=True)]
    drafts = {
        None: None,
        "lookup": LookupDrafter(length=5),
        "random": RandomDrafter(answers=dict(enumerate(expected)), forced=True),
        "head": HeadDrafter(SumHead(), length=3),
        "medusa": MedusaDrafter(SumMedusa()),
    }[drafter]
    runner = FakeRunner(pages=12)  # of 42 that all need
    grammars = [RuleGrammar(rule) for rule in rules]
    found = generate(runner, prompts, max_new_tokens=100, drafter=drafts, grammar=grammars)
    assert [text.tokens for text in found] == expected
    assert sum(text.statistics.replayed_tokens for text in found) > 100
    assert [grammar.tokens for grammar in grammars] == expected


@pytest.mark.parametrize("at", range(12))
def test_a_matcher_that_breaks_leaves_everything_as_it_was(at):
    runner, drafter = FakeRunner(), RandomDrafter(at, forced=True)
    runner.cache.add_sequence(77)
    grammars = [RuleGrammar(random_rule(i, ends=0)) for i in range(3)]
    grammars[1] = RuleGrammar(random_rule(1, ends=0), breaks_at=at)
    grammars[2].accept_token(next(iter(grammars[2].allowed([]))))
    before = [list(grammar.tokens) for grammar in grammars]
    with pytest.raises(RuntimeError, match="the matcher broke"):
        generate(
            runner,
            [[1], [2, 3], [4]],
            max_new_tokens=30,
            drafter=drafter,
            grammar=grammars,
        )
    assert [grammar.tokens for grammar in grammars] == before
    assert runner.cache.committed == {77: []} and drafter.texts == {}


def test_a_callback_that_raises_takes_grammars_back_too():
    grammar = RuleGrammar(random_rule(1, ends=0))

    def broken(tokens):
        if len(grammar.tokens) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(FakeRunner(), [1], max_new_tokens=30, grammar=grammar, on_tokens=broken)
    assert grammar.tokens == []


def test_a_function_makes_a_matcher_for_each_text():
    made = []

    def make():
        made.append(RuleGrammar(random_rule(9, ends=0)))
        return made[-1]

    texts = generate(FakeRunner(), [[1], [2]], max_new_tokens=9, grammar=make)
    assert [grammar.tokens for grammar in made] == [text.tokens for text in texts]
    one = generate(FakeRunner(), [1], max_new_tokens=9, grammar=make)
    assert one.tokens == texts[0].tokens and len(made) == 3


def test_what_is_no_matcher_of_its_own_is_refused():
    shared, runner = RuleGrammar(random_rule(1)), FakeRunner()
    prompts = [[1], [2]]
    for grammar in (shared, [shared, shared], lambda: shared):
        with pytest.raises(ValueError, match="prompts 0 and 1 share a grammar matcher"):
            generate(runner, prompts, grammar=grammar)
    with pytest.raises(ValueError, match="one entry for each of 2 prompts, got 1"):
        generate(runner, prompts, grammar=[shared])
    with pytest.raises(TypeError, match="object lacks accept_token, fill_next_token_bitmask"):
        generate(runner, [1], grammar=object())
    ended = RuleGrammar(lambda tokens: None)
    with pytest.raises(ValueError, match="prompt 0 has ended already"):
        generate(runner, [1], grammar=ended)
    assert not runner.cache.committed and not shared.tokens


@pytest.mark.parametrize("rule", ["auto", "target_only", "token_wise", "block", "traversal"])
def test_nothing_behind_a_drafted_stop_token_is_verified(rule):
    """The only token that is allowed there may have no probability: plain decoding ends before."""

    class Masking(FakeRunner):
        def _rows(self, contexts):
            rows = super()._rows(contexts)
            rows[:, 7] = -np.inf
            return rows

    forced, free = sequence({1}, {5}, {6}, {7}, {7}), sequence({1}, {5, 8}, {6, 9}, {7}, {7})
    runner = Masking(tokens_after=lambda context: [5, 6])
    for drafter, allowed in [(None, forced), (Chain([5, 6, 7]), forced), (Chain([5, 6, 7]), free)]:
        for sampling in SAMPLINGS[:2] if allowed is forced else [None]:
            text = generate(
                runner,
                [0],
                drafter=drafter,
                rule=rule,
                grammar=RuleGrammar(allowed),
                sampling=sampling,
                stop=[6],
            )
            assert text.tokens == [1, 5, 6] and text.finish_reason == "stop_token"
            assert sum(text.statistics.accepted) == 2


def test_a_grammar_that_is_stuck_or_contradicts_itself_is_refused():
    stuck, runner = RuleGrammar(sequence({1}, {2}, set())), FakeRunner()
    for drafter in (None, Chain([2, 3])):
        with pytest.raises(ValueError, match=r"grammar (allows no token after|refuses token)"):
            generate(runner, [0], max_new_tokens=9, grammar=stuck, drafter=drafter)
        assert not runner.cache.committed and not stuck.tokens

    class Liar(RuleGrammar):
        def accept_token(self, token_id):
            return False

    with pytest.raises(ValueError, match="the grammar refuses token 1"):
        generate(runner, [0], max_new_tokens=9, grammar=Liar(sequence({1}, {2})))
