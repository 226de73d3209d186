"""A draft model drafts: texts stay what they are, and its cache what a prefill of the text is."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from drafters import DRAWN, SHORT_CACHES, Around, Lying, Verified
from fake_runner import VOCABULARY, FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import ModelDrafter, sample
from table_world import (
    DRAFT,
    LIMIT,
    TableRunner,
    joint,
    statistic,
)
from tiny_model import compile_tiny_model

SHAPES = {
    "chain": {"length": 4},
    "adaptive": {},
    "paths": {"branching": (3, 1), "length": 4},
    "tree": {"branching": (3, 2, 2)},
    "beam": {"branching": 2, "beam": 2, "length": 3},
    "drawn": {"branching": (3, 2), "length": 3, "how": "without_replacement"},
    "coupled": {"length": 4, "how": "coupled"},
}
SAMPLING = Sampling(temperature=0.7, top_k=12)

TRIALS = 1500


class VerifiedModel(Verified, ModelDrafter):
    pass


class InStep(Around):
    """Checks after each round that the draft cache holds what a prefill of the text makes."""

    def __init__(self, drafter, runner):
        super().__init__(drafter)
        self.runner, self.checks = runner, 0

    def observe(self, results):
        super().observe(results)
        for result in results:
            if result.request in self.drafter._sequences:
                self.check(self.drafter._sequences.id_of(result.request), result.request.tokens)

    def check(self, id, tokens):
        runner, cache = self.runner, self.runner.cache
        held = cache.sequence_length(id)
        assert cache.pending_length(id) == 0 and held < len(tokens)
        cache.fork_sequence(id, 97)
        cache.add_sequence(98)
        runner.prefill([98], [tokens[:held]])
        mine, fresh = (np.from_dlpack(runner.decode([one], [tokens[held]])) for one in (97, 98))
        np.testing.assert_array_equal(mine, fresh)
        cache.remove_sequence(97)
        cache.remove_sequence(98)
        self.checks += 1


@pytest.fixture(scope="module")
def target(tiny_model):
    return kvctl.ModelRunner.load(tiny_model, max_sequences=4)


@pytest.fixture(scope="module", params=["same", "other"])
def draft_model(request, tiny_model, tmp_path_factory):
    """The target's own weights, of which all is accepted, or other ones, of which little is."""
    if request.param == "same":
        return kvctl.ModelRunner.load(tiny_model, max_sequences=6)
    other = compile_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=9)
    return kvctl.ModelRunner.load(other, max_sequences=6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])
def test_texts_are_plain_and_the_cache_is_in_step(target, draft_model, shape, sampling):
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 256, n).tolist() for n in (5, 40, 17, 1, 9)]
    options = {"sampling": sampling, "seed": [4, 5, 6, 7, 8], "max_new_tokens": [20, 9, 30, 25, 2]}
    expected = [text.tokens for text in generate(target, prompts, **options)]
    drafter = InStep(VerifiedModel(draft_model, **SHAPES[shape]), draft_model)
    got = generate(target, prompts, drafter=drafter, **options)
    assert [text.tokens for text in got] == expected
    assert drafter.checks > 0
    assert sum(text.statistics.speculative_rounds for text in got) > 0
    assert not any(id in draft_model.cache for id in range(10))


def test_what_the_target_would_say_is_accepted_whole(target, tiny_model):
    drafter = ModelDrafter(kvctl.ModelRunner.load(tiny_model), length=4)
    text = generate(target, [1, 2, 3], drafter=drafter, max_new_tokens=26)
    assert text.statistics.mean_acceptance_length == 5.0


RULES = [
    *DRAWN,
    ("auto", {"how": "deterministic", "branching": (2, 2)}),
    ("traversal", {"how": "deterministic", "branching": (2, 2), "length": 2}),
]


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_the_joint_distribution_of_four_tokens(rule, options):
    options = {"length": 2, **options}
    counts, expected, drafted = joint(
        rule, ModelDrafter(TableRunner(DRAFT), **options), trials=TRIALS
    )
    assert drafted > TRIALS / 2
    assert statistic(counts, expected) < LIMIT


def test_no_two_draws_of_a_round_share_a_number(monkeypatch):
    """Also where a row's support is exhausted, so that it makes fewer nodes than draws."""
    from kvctl.draft.model import growing_drafter

    rounds: dict[int, list[int]] = {}

    def watched(logits, **options):
        for position, first in zip(options["root_positions"], options["first_nodes"], strict=True):
            rounds.setdefault(position, []).extend(range(first, first + options["n"]))
        return sample(logits, **options)

    monkeypatch.setattr(growing_drafter, "sample", watched)
    table = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]) + 1e-30
    drafter = ModelDrafter(
        TableRunner(table),
        how="without_replacement",
        branching=2,
        length=3,
        sampling=Sampling(temperature=1.0, min_p=0.01),
    )
    generate(TableRunner(DRAFT), [0], max_new_tokens=40, drafter=drafter)
    assert max(map(len, rounds.values())) > 6
    assert all(len(set(draws)) == len(draws) for draws in rounds.values())


def test_a_draft_model_that_is_not_the_one_drawn_from_is_seen():
    """The negative control: the distributions are another model's."""

    class Liar(Lying, ModelDrafter):
        pass

    drafter = Liar(TableRunner(DRAFT), how="independent", length=2)
    counts, expected, _ = joint("token_wise", drafter, trials=TRIALS)
    assert statistic(counts, expected) > 5 * LIMIT


@pytest.mark.parametrize("short", SHORT_CACHES)
def test_a_draft_model_without_room_drafts_less(short):
    prompts = [[1, 2, 3], [4] * 12, [5, 6], [7]]
    expected = [text.tokens for text in generate(FakeRunner(), prompts, max_new_tokens=24)]
    drafter = ModelDrafter(FakeRunner(**SHORT_CACHES[short]), branching=(2, 1), length=3)
    got = generate(FakeRunner(), prompts, max_new_tokens=24, drafter=drafter)
    assert [text.tokens for text in got] == expected


def test_drafting_ends_with_the_draft_models_context():
    draft_model = FakeRunner()
    draft_model.context_window_size = 12
    drafter = ModelDrafter(draft_model, length=3)
    text = generate(FakeRunner(), [1, 2, 3], max_new_tokens=20, drafter=drafter)
    assert text.tokens == generate(FakeRunner(), [1, 2, 3], max_new_tokens=20).tokens
    assert 0 < text.statistics.speculative_rounds < text.statistics.rounds


def test_a_target_short_of_pages_replays_texts():
    prompts = [[5, 6, 7 + i] for i in range(6)]
    expected = [text.tokens for text in generate(FakeRunner(), prompts, max_new_tokens=100)]
    drafter = ModelDrafter(FakeRunner(), length=3)
    got = generate(FakeRunner(pages=12), prompts, max_new_tokens=100, drafter=drafter)
    assert [text.tokens for text in got] == expected
    assert sum(text.statistics.replayed_tokens for text in got) > 0


def test_a_target_that_breaks_leaves_the_draft_model_usable():
    target, draft_model = FakeRunner(), FakeRunner()
    drafter = ModelDrafter(draft_model, length=3)

    def stop(tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(target, [1, 2], drafter=drafter, on_tokens=stop)
    assert not draft_model.cache.committed
    text = generate(target, [1, 2], drafter=drafter, max_new_tokens=9)
    assert text.tokens == generate(FakeRunner(), [1, 2], max_new_tokens=9).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"branching": (2, 0)}, "branching must be at least 1 on each level, got \\(2, 0\\)"),
        ({"how": "sorted"}, "how must be one of deterministic, .* got 'sorted'"),
        ({"beam": 2, "how": "independent"}, "a beam keeps nodes by their value"),
        ({"branching": VOCABULARY + 1}, "vocabulary of 40 tokens, got 41"),
        ({"branching": 9, "length": 4}, "has 729 nodes to extend, .* at most 64 tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelDrafter(FakeRunner(), **options)
