"""A draft model of another vocabulary that drafts text: texts stay plain, and its cache in step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import kvctl
from drafters import Around
from fake_runner import FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import Request, StringDrafter, StringMap
from pieces import TEXT, Pieces, Writer, pieces
from table_world import DRAFT, LIMIT, TableRunner, joint, statistic

SAMPLING = Sampling(temperature=1.0)
TRIALS = 1500


class InStep(Around):
    """Checks after each round what the draft model's cache holds."""

    def __init__(self, drafter, check):
        super().__init__(drafter)
        self.check, self.checks = check, 0

    def observe(self, results):
        super().observe(results)
        for result in results:
            request, sequences = result.request, self.drafter._sequences
            text = self.drafter._texts[request.id]
            if request in sequences and text.committed:
                spelled = text.spelled.tokens()
                assert text.committed == spelled[: len(text.committed)]
                self.check(sequences.id_of(request), text.committed)
                self.checks += 1


def holds(runner):
    """Return a check that a sequence of a fake cache is committed, and is these tokens."""

    def check(id, tokens):
        assert runner.cache.pending_length(id) == 0
        assert runner.cache.committed[id] == tokens

    return check


@pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [None, 5])
@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_texts_are_plain_and_the_cache_is_in_step(seed, space, length, sampling):
    target, draft = pieces(seed, 70), pieces(seed + 50, 60, control=2, space=space)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 70, n).tolist() for n in (1, 9, 30)]
    prompts += [target.encode(TEXT[:n], special="literal", bos=False) for n in (1, 20)]

    def runner():
        return Writer(target, wrong=0.1)

    options = {"max_new_tokens": 40, "sampling": sampling, "seed": seed, "rule": "auto"}
    expected = [text.tokens for text in generate(runner(), prompts, **options)]
    model = Writer(draft, wrong=0.1)
    drafter = InStep(StringDrafter(model, StringMap(draft, target), length=length), holds(model))
    got = generate(runner(), prompts, drafter=drafter, **options)
    assert [text.tokens for text in got] == expected
    if length is not None:
        assert drafter.checks > 0
        assert sum(sum(text.statistics.accepted) for text in got) > 5
    assert not model.cache.committed


def test_sampled_texts_are_plain_seed_by_seed():
    target, draft = pieces(3, 70), pieces(4, 60)
    start = target.encode(TEXT, special="literal", bos=False)
    prompts = [start[: 1 + i % 9] for i in range(200)]
    options = {"max_new_tokens": 12, "sampling": SAMPLING, "seed": list(range(200))}
    big = {"pages": 2000, "sequences": 300}
    expected = generate(Writer(target, wrong=0.2, **big), prompts, **options)
    drafter = StringDrafter(Writer(draft, **big), StringMap(draft, target), length=4)
    got = generate(
        Writer(target, wrong=0.2, **big), prompts, drafter=drafter, rule="target_only", **options
    )
    assert [text.tokens for text in got] == [text.tokens for text in expected]
    assert sum(sum(text.statistics.accepted) for text in got) > 200


def test_a_draft_model_without_room_is_left_out():
    target, draft = pieces(3, 70), pieces(4, 60)
    prompts = [[1, 2], [3] * 20, [4] * 50, [5]]
    expected = [text.tokens for text in generate(Writer(target), prompts, max_new_tokens=60)]
    for options in ({"pages": 4}, {"sequences": 1}, {"pages": 3, "page_size": 8}):
        model = Writer(draft, **options)
        model.context_window_size = 70
        drafter = InStep(StringDrafter(model, StringMap(draft, target), length=4), holds(model))
        got = generate(Writer(target), prompts, max_new_tokens=60, drafter=drafter)
        assert [text.tokens for text in got] == expected
        assert not model.cache.committed


def test_texts_that_wait_start_anew():
    target, draft = pieces(3, 70), pieces(4, 60)
    prompts = [[5, 6, 7 + i] for i in range(6)]
    expected = [text.tokens for text in generate(Writer(target), prompts, max_new_tokens=100)]
    drafter = StringDrafter(Writer(draft), StringMap(draft, target), length=4)
    got = generate(Writer(target, pages=12), prompts, max_new_tokens=100, drafter=drafter)
    assert [text.tokens for text in got] == expected
    assert sum(text.statistics.replayed_tokens for text in got) > 0


class Bitwise:
    """Compares a sequence with a fresh prefill of its tokens, by what both say next."""

    def __init__(self, runner):
        self.runner = runner

    def __call__(self, id, tokens):
        runner, cache = self.runner, self.runner.cache
        assert cache.pending_length(id) == 0 and cache.sequence_length(id) == len(tokens)
        cache.fork_sequence(id, 97)
        cache.add_sequence(98)
        runner.prefill([98], [tokens])
        mine, fresh = (np.from_dlpack(runner.decode([one], [7])) for one in (97, 98))
        try:
            np.testing.assert_array_equal(mine, fresh)
        finally:
            cache.remove_sequence(97)
            cache.remove_sequence(98)


@pytest.fixture(scope="module")
def models(tiny_model):
    return [kvctl.ModelRunner.load(tiny_model, max_sequences=8) for _ in range(2)]


PROMPTS = [np.random.default_rng(n).integers(0, 256, n).tolist() for n in (5, 40, 17, 1, 9)]
# Few letters, so that pieces often reach across the end of a text.
LETTERS = "".join(np.random.default_rng(1).choice(list("abc\u00e9"), 900))
TOKENIZERS = [pieces(seed, 256, text=LETTERS) for seed in (5, 6)]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7)], ids=["greedy", "sampled"])
def test_the_cache_is_that_of_a_fresh_prefill_bit_for_bit(models, sampling, same):
    target, model = models
    options = {"sampling": sampling, "seed": [4, 5, 6, 7, 8], "max_new_tokens": 25}
    expected = [text.tokens for text in generate(target, PROMPTS, **options)]
    strings = StringMap(TOKENIZERS[0], TOKENIZERS[0 if same else 1])
    drafter = InStep(StringDrafter(model, strings, length=4), Bitwise(model))
    got = generate(target, PROMPTS, drafter=drafter, **options)
    assert [text.tokens for text in got] == expected
    assert drafter.checks > 20
    assert not any(id in model.cache for id in range(10))


def test_a_cache_that_is_not_taken_back_is_seen(models):
    """The negative control: tokens that are spelled in another way now stay in the cache."""

    class Forgetful(StringDrafter):
        def _step_back(self, request, tokens):
            text = self._texts[request.id]
            known = len(text.committed)
            super()._step_back(request, [*text.committed, *tokens[known:]])
            text.committed = [*tokens[:known], *text.committed[known:]]

    target, model = models
    strings = StringMap(*TOKENIZERS)
    drafter = InStep(Forgetful(model, strings, length=4), Bitwise(model))
    with pytest.raises(AssertionError):
        generate(target, PROMPTS, drafter=drafter, max_new_tokens=25)
    for id in [id for id in range(100) if id in model.cache]:
        model.cache.remove_sequence(id)


def table_drafter(kind=StringDrafter):
    """The draft table's model, with its letters in another order and one for two of the target's.

    Its last token is two letters; it draws its rows from the table's of the last letter.
    """
    target = Pieces([b"a", b"b", b"c"])
    draft = Pieces([b"b", b"c", b"a", b"ab"])
    order = [1, 2, 0, 1]
    rows = DRAFT[np.ix_(order, order)] * [1, 1, 0.5, 1.5]
    model = TableRunner(rows / rows.sum(1, keepdims=True))
    return kind(model, StringMap(draft, target), length=3)


class Liar(StringDrafter):
    """Says that its tokens were drawn at random."""

    def propose(self, requests, budget):
        return [
            replace(one, drawn="independent", probs=np.full((len(one.tree), 3), 1 / 3))
            for one in super().propose(requests, budget)
        ]


@pytest.mark.parametrize("rule", ["target_only", "token_wise", "block", "traversal", "recursive"])
def test_the_joint_distribution_of_four_tokens(rule):
    counts, expected, accepted = joint(rule, table_drafter(), trials=TRIALS)
    assert accepted > TRIALS / 4
    assert statistic(counts, expected) < LIMIT


@pytest.mark.parametrize("rule", ["token_wise", "block"])
def test_a_drafter_that_lies_about_how_it_drew_is_seen(rule):
    counts, expected, _ = joint(rule, table_drafter(Liar), trials=TRIALS)
    assert statistic(counts, expected) > 5 * LIMIT


def test_a_rule_that_text_would_bias_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="lossless only for drawn='independent'"):
        joint("best_of_k", table_drafter(), trials=2)


def test_what_cannot_be_is_refused():
    strings = StringMap(Pieces([b"%d" % i for i in range(50)]), Pieces([b"a"]))
    with pytest.raises(ValueError, match="tokenizer has 50 tokens, and the model 40"):
        StringDrafter(FakeRunner(), strings)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        StringDrafter(FakeRunner(), strings, length=-1)


def test_a_token_behind_half_a_character_has_the_share_of_its_own_bytes():
    """They were counted from the half that the target has: each token had its neighbour's share."""
    target = Pieces([b"a", b"\xc3", b"\xa9", b"b", b"c"])
    draft = Pieces(["\u00e9".encode(), b"b", b"c", b"a"])

    class Written(Writer):
        def _logits(self, context):
            row = np.zeros(4, np.float32)
            row[len(context) - 1] = (3.0, 2.0, 1.0)[len(context) - 1]
            return row

    drafter = StringDrafter(Written(draft), StringMap(draft, target), length=3)
    request = Request(0, [0, 1], prompt_length=1, seq_id=0, sampling=SAMPLING)
    request.limit = 5
    drafter.start(request)
    [found] = drafter.propose([request], None)
    assert found.tree.tokens.tolist() == [1, 2, 3, 4]
    shares = [np.exp(top) / (np.exp(top) + 3) for top in (3.0, 2.0, 1.0)]
    assert [token for token, _ in drafter._texts[0].chain] == [2, 3, 4]
    np.testing.assert_allclose([share for _, share in drafter._texts[0].chain], shares, rtol=1e-6)
