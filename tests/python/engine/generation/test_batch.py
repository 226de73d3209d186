"""Many texts in one loop: each is the text that it would be alone, whatever happens around it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from drafters import Always
from fake_heads import SumHead, SumMedusa
from fake_runner import VOCABULARY, FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import Draft, Drafter, HeadDrafter, LookupDrafter, MedusaDrafter
from kvctl.engine.stats import Statistics
from random_drafter import RandomDrafter

SAMPLINGS = [
    None,
    Sampling(temperature=1.0),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=1.0, repetition_penalty=1.2, presence_penalty=0.1),
    Sampling(temperature=0.0, frequency_penalty=0.3),
]


class Workload:
    """Random prompts, lengths, samplings, seeds and stops."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.size = rng.randint(1, 9)
        self.prompts = [
            [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))] for _ in range(self.size)
        ]
        self.lengths = [rng.choice([1, 2, 9, 30, 60]) for _ in range(self.size)]
        self.samplings = [rng.choice(SAMPLINGS) for _ in range(self.size)]
        seeds = [3] if rng.random() < 0.5 else [3, 4, 5]
        self.seeds = [rng.choice(seeds) for _ in range(self.size)]
        self.ids = [rng.randrange(1000) for _ in range(self.size)]
        self.stop = rng.sample(range(VOCABULARY), rng.choice([0, 0, 1, 2]))
        self.fatal = [rng.randrange(VOCABULARY) for _ in range(self.size)]
        self.stops_when = rng.random() < 0.3
        self.pages = rng.randint(7, 24)
        self.sequences = rng.choice([2, 3, 4, 100])  # one of them is not ours
        self.chunk = rng.choice([8, 16, 64])

    def runner(self):
        return FakeRunner(pages=self.pages, sequences=self.sequences, chunk=self.chunk)

    def stop_when(self, i):
        return (lambda token: token == self.fatal[i]) if self.stops_when else None

    def alone(self, i, **options):
        return generate(
            FakeRunner(pages=self.pages),
            self.prompts[i],
            max_new_tokens=self.lengths[i],
            sampling=self.samplings[i],
            seed=self.seeds[i],
            request_id=self.ids[i],
            stop=self.stop,
            stop_when=self.stop_when(i),
            **options,
        )

    def together(self, runner, **options):
        conditions = [self.stop_when(i) for i in range(self.size)] if self.stops_when else None
        return generate(
            runner,
            self.prompts,
            max_new_tokens=self.lengths,
            sampling=self.samplings,
            seed=self.seeds,
            request_id=self.ids,
            stop=self.stop,
            stop_when=conditions,
            **options,
        )

    def drafter(self, answers):
        kind = self.rng.randrange(6)
        if kind == 0:
            return None
        if kind == 1:
            return LookupDrafter()
        if kind == 2:
            return LookupDrafter(length=4)
        layers = (1, 5) if kind == 3 else ()
        return RandomDrafter(
            self.rng.random(), rates=kind != 4, answers=answers, hidden_layers=layers
        )


def occupied(runner):
    """Return a runner in whose cache somebody else has a sequence."""
    runner.cache.add_sequence(77)
    return runner


@pytest.mark.parametrize("seed", range(150))
def test_every_text_is_the_text_it_is_alone(seed):
    work = Workload(seed)
    expected = [work.alone(i, log_probs=True) for i in range(work.size)]
    drafter = work.drafter({i: one.tokens for i, one in enumerate(expected)})
    runner, seen = occupied(work.runner()), [[] for _ in range(work.size)]
    found = work.together(
        runner,
        drafter=drafter,
        log_probs=True,
        on_tokens=lambda i, tokens: seen[i].extend(tokens),
        max_batch=work.rng.choice([None, 1, 2, 5]),
        seq_id=100,
    )
    for i, (one, two) in enumerate(zip(expected, found, strict=True)):
        assert two.tokens == one.tokens == seen[i]
        assert two.finish_reason == one.finish_reason
        assert two.log_probs == one.log_probs and len(one.log_probs) == len(one.tokens)
        assert two.statistics.prompt_tokens == len(work.prompts[i])
        assert two.statistics.new_tokens == len(one.tokens)
    assert runner.cache.committed == {77: []}
    if isinstance(drafter, RandomDrafter):
        assert drafter.texts == {}


@pytest.mark.parametrize("drafter", [None, "random", "hidden", "lookup", "head", "medusa"])
def test_where_pages_run_out_the_youngest_waits_and_loses_nothing(drafter):
    prompts = [[5, 6, 7 + i] for i in range(6)]
    expected = [generate(FakeRunner(), p, max_new_tokens=100).tokens for p in prompts]
    answers = dict(enumerate(expected))
    drafts = {
        None: None,
        "random": RandomDrafter(answers=answers),
        "hidden": RandomDrafter(answers=answers, hidden_layers=(2, 3)),
        "lookup": LookupDrafter(length=5),
        "head": HeadDrafter(SumHead(), branching=2, beam=2, length=3, nodes=5),
        "medusa": Always(MedusaDrafter(SumMedusa(), nodes=5, adapt=False)),
    }[drafter]
    runner = FakeRunner(pages=12)  # of 42 that all need
    found = generate(runner, prompts, max_new_tokens=100, drafter=drafts)
    assert [one.tokens for one in found] == expected
    total = Statistics.merge(one.statistics for one in found)
    assert total.replayed_tokens > 100 and total.replay_seconds > 0
    assert found[0].statistics.replayed_tokens == 0  # the oldest never waits
    assert runner.cache.committed == {}


def test_texts_enter_in_order_and_one_forward_serves_all():
    runner = FakeRunner()
    order = []
    texts = generate(
        runner,
        [[1, 2], [3], [4, 5, 6], [7]],
        max_new_tokens=[3, 8, 3, 3],
        max_batch=2,
        on_tokens=lambda i, tokens: order.append(i),
    )
    assert [len(one.tokens) for one in texts] == [3, 8, 3, 3]
    # 0 and 1 run; 2 takes the place of 0, then 3 that of 2.
    assert order == [0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 3, 1, 3, 1, 3, 1]


class Interrupted(Exception):
    """What a test throws in."""


class Raises(RandomDrafter):
    """Raises at the n-th call of any of its methods."""

    def __init__(self, at, error, **options):
        super().__init__(**options)
        self.left, self.error = at, error

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise self.error("here")

    def start(self, request):
        self.count()
        super().start(request)

    def propose(self, requests, budget):
        self.count()
        return super().propose(requests, budget)

    def observe(self, results):
        self.count()
        super().observe(results)

    def finish(self, request):
        super().finish(request)
        self.count()


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["drafter", "callback", "stop_when", "runner", "cache"])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_raises_the_cache_is_as_it_was(error, where, seed):
    work = Workload(seed)
    calls = [random.Random(seed).randint(1, 20)]

    def count(*args):
        calls[0] -= 1
        if calls[0] == 0:
            raise error("here")
        return False

    def counted(call):
        def wrapper(*args, **options):
            out = call(*args, **options)
            count()
            return out

        return wrapper

    runner, options = occupied(work.runner()), {}
    drafter = Raises(calls[0], error) if where == "drafter" else RandomDrafter()
    if where == "callback":
        options["on_tokens"] = count
    elif where == "stop_when":
        work.stop_when, work.stops_when = lambda i: count, True
    elif where == "runner":
        for name in ("prefill", "decode", "verify"):
            setattr(runner, name, counted(getattr(runner, name)))
    elif where == "cache":
        for name in ("add_sequence", "commit"):
            setattr(runner.cache, name, counted(getattr(runner.cache, name)))
    try:
        work.together(runner, drafter=drafter, **options)
    except error:
        pass
    else:
        assert (drafter.left if where == "drafter" else calls[0]) > 0
    assert runner.cache.committed == {77: []} and runner.cache.pending == {77: []}
    assert drafter.texts == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": [1, 2, 3]}, ValueError, "max_new_tokens needs one entry .* 2 prompts"),
        ({"seed": [1]}, ValueError, "seed needs one entry for each of 2 prompts, got 1"),
        ({"sampling": [None]}, ValueError, "sampling needs one entry"),
        ({"sampling": [None, 3]}, TypeError, r"sampling must be kvctl\.Sampling, got int"),
        ({"request_id": [1, 2, 3]}, ValueError, "request_id needs one entry"),
        ({"max_batch": 0}, ValueError, "max_batch must be at least 1, got 0"),
        ({"rule": "best"}, ValueError, "rule must be auto, greedy, .*got 'best'"),
        ({"rule": lambda tree, rng: (0, 0), "log_probs": True}, ValueError, "no log_probs"),
        ({"seq_id": 76}, ValueError, "sequence 77 exists already"),
        ({"stop_when": [lambda token: False]}, ValueError, "stop_when needs one entry"),
    ],
)
def test_bad_arguments_leave_the_cache_alone(options, error, message):
    runner = occupied(FakeRunner())
    with pytest.raises(error, match=message):
        generate(runner, [[1], [2, 3]], **options)
    assert runner.cache.committed == {77: []} and runner.forwards == []


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([[1], []], ValueError, "at least one token"),
        ([[1], [VOCABULARY]], ValueError, f"token {VOCABULARY}"),
        ([[1], [1.5]], TypeError, r"prompts\[1\] must be integers"),
        ([[1], [2] * 4000], ValueError, "4000 tokens; there is room for 1024"),
    ],
)
def test_a_bad_prompt_among_others_is_refused_before_anything_runs(prompts, error, message):
    runner = FakeRunner()
    with pytest.raises(error, match=message):
        generate(runner, prompts)
    assert runner.cache.committed == {} and runner.forwards == []


def test_prompts_of_any_kind_of_array():
    runner = FakeRunner()
    expected = [generate(runner, p, max_new_tokens=5).tokens for p in ([1, 2], [3, 4])]
    for prompts in (
        ((1, 2), (3, 4)),
        np.array([[1, 2], [3, 4]]),
        [np.array([1, 2]), np.array([3, 4], np.int32)],
    ):
        assert [one.tokens for one in generate(runner, prompts, max_new_tokens=5)] == expected
    [only] = generate(runner, [[1, 2]], max_new_tokens=5)
    assert only.tokens == expected[0]
    assert generate(runner, np.array([1, 2]), max_new_tokens=5).tokens == expected[0]


def test_one_request_id_for_many_makes_texts_that_differ():
    sampling = Sampling(temperature=1.0)
    runner = FakeRunner()
    texts = generate(runner, [[1, 2]] * 4, max_new_tokens=20, sampling=sampling, request_id=5)
    assert len({tuple(one.tokens) for one in texts}) == 4
    alone = generate(runner, [1, 2], max_new_tokens=20, sampling=sampling, request_id=7)
    assert texts[2].tokens == alone.tokens


def test_statistics_of_a_batch_add_up():
    runner = FakeRunner()
    answers = [generate(runner, [i, 1], max_new_tokens=30).tokens for i in range(5)]
    drafter = RandomDrafter(answers=dict(enumerate(answers)), rates=False)
    texts = generate(runner, [[i, 1] for i in range(5)], max_new_tokens=30, drafter=drafter)
    total = Statistics.merge(one.statistics for one in texts)
    assert total.texts == 5 and total.new_tokens == 150
    assert total.rounds == sum(one.statistics.rounds for one in texts)
    assert sum(total.accepted) == sum(sum(one.statistics.accepted) for one in texts)
    assert total.tokens_per_round == pytest.approx(145 / total.rounds)
    assert total.tokens_per_second == pytest.approx(
        145 / (total.start_seconds + total.decode_seconds)
    )
    again = Statistics.merge([total, Statistics.merge([])])
    assert again == total


class TwoSeeds(Drafter):
    """Nothing but plain steps, to be asked for in runs of unequal seeds."""

    def propose(self, requests, budget):
        return [Draft.nothing(request.root) for request in requests]


def test_a_user_class_that_only_proposes_is_a_drafter():
    runner = FakeRunner()
    expected = [generate(runner, [i], seed=i, max_new_tokens=9).tokens for i in range(3)]
    found = generate(runner, [[0], [1], [2]], seed=[0, 1, 2], max_new_tokens=9, drafter=TwoSeeds())
    assert [one.tokens for one in found] == expected


def test_a_drafter_that_wants_hidden_states_needs_a_runner_that_has_them():
    runner = FakeRunner()
    runner.abilities = frozenset()
    with pytest.raises(ValueError, match=r"RandomDrafter wants hidden states of layers \(3,\)"):
        generate(runner, [1], drafter=RandomDrafter(hidden_layers=(3,)))
    assert runner.cache.committed == {}
