import importlib

import pytest

from fake_runner import VOCABULARY, FakeRunner
from kvctl import ModelRunner, Sampling, TokenTree, generate
from kvctl.draft import Draft, Drafter, LookupDrafter
from kvctl.engine.costs import cost_of

PROMPT = [5, 6, 7, 8, 9, 5, 6]


class Oracle(Drafter):
    """Drafts what the model will say, wrong from `wrong` tokens on, with a wrong sibling first."""

    def __init__(self, tokens, length=4, wrong=99):
        self._tokens, self._length, self._wrong = tokens, length, wrong
        self.running = []

    def start(self, request):
        self.running.append(request.id)

    def propose(self, requests, budget):
        return [self._draft(request) for request in requests]

    def _draft(self, request):
        said = len(request.tokens) - request.prompt_length
        right = self._tokens[said : said + min(self._length, request.limit // 2)]
        tokens, parents, last = [request.tokens[-1]], [-1], 0
        for index, token in enumerate(right):
            tokens += [(token + 1) % VOCABULARY, (token + (index >= self._wrong)) % VOCABULARY]
            parents += [last, last]
            if index >= self._wrong:
                tokens.pop(), parents.pop()
                break
            last = len(tokens) - 1
        return Draft(TokenTree(tokens, parents))

    def observe(self, results):
        for result in results:
            assert result.seconds > 0
            assert list(result.request.tokens[-len(result.emitted) :]) == result.emitted

    def finish(self, request):
        self.running.remove(request.id)


def plain_tokens(runner, n=60, **options):
    return generate(runner, PROMPT, max_new_tokens=n, **options).tokens


def test_plain_greedy_takes_the_best_token_each_time():
    runner = FakeRunner()
    text = list(PROMPT)
    for token in plain_tokens(runner, 30):
        assert token == runner._logits(text).argmax()
        text.append(token)
    assert runner.cache.committed == {}


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0, top_p=0.9)])
@pytest.mark.parametrize("length", [1, 4, 9])
@pytest.mark.parametrize("wrong", [0, 2, 99])
def test_speculative_is_plain_only_sooner(sampling, length, wrong):
    runner = FakeRunner()
    expected = plain_tokens(runner, sampling=sampling, seed=3)
    drafter = Oracle(expected, length, wrong)
    runner.forwards.clear()
    generation = generate(
        runner, PROMPT, max_new_tokens=60, drafter=drafter, sampling=sampling, seed=3
    )
    assert generation.tokens == expected
    assert drafter.running == []
    stats = generation.statistics
    assert stats.new_tokens == 60
    # Every round emits its accepted drafts and one more token.
    assert sum(stats.accepted) + stats.rounds == 59
    if wrong == 0:
        assert stats.mean_accepted_length == 0
    elif wrong == 99 and length > 1:
        assert stats.tokens_per_round > 2
        assert stats.acceptance_by_position[0] == 1.0


def test_sampled_text_depends_on_seed_and_request_alone():
    runner = FakeRunner()
    sampling = Sampling(temperature=1.0)
    one = plain_tokens(runner, sampling=sampling, seed=1)
    assert one == plain_tokens(runner, sampling=sampling, seed=1, seq_id=3)
    assert one != plain_tokens(runner, sampling=sampling, seed=2)
    assert one != plain_tokens(runner, sampling=sampling, seed=1, request_id=1)


@pytest.mark.parametrize("options", [{}, {"length": 5}, {"branches": False}])
def test_lookup_gives_the_same_text_faster(options):
    runner = FakeRunner(tokens_after=lambda context: (context[-1] + 1) % 17)
    expected = plain_tokens(runner, 100)
    generation = generate(runner, PROMPT, max_new_tokens=100, drafter=LookupDrafter(**options))
    assert generation.tokens == expected
    if "length" in options:  # how far an adaptive draft goes is up to this machine's timings
        assert generation.statistics.rounds < 40


def test_adaptive_length_in_simulated_time(monkeypatch):
    runner = FakeRunner(tokens_after=lambda context: (context[-1] + 1) % 17)
    now = [0.0]

    def clock():
        # A round of 8 costs one and a half of a plain step.
        now[0] += sum(0.02 * (1 + 0.5 * (rows - 1) / 7) for rows in runner.forwards)
        runner.forwards.clear()
        return now[0]

    monkeypatch.setattr(importlib.import_module("kvctl.engine.rounds"), "perf_counter", clock)
    plain = generate(runner, PROMPT, max_new_tokens=100)
    fast = generate(runner, PROMPT, max_new_tokens=100, drafter=LookupDrafter())
    assert fast.tokens == plain.tokens
    assert fast.statistics.tokens_per_second > 2.8 * plain.statistics.tokens_per_second
    assert plain.statistics.tokens_per_second == pytest.approx(50)


def test_callback_sees_every_token_once_as_it_comes():
    runner = FakeRunner()
    expected = plain_tokens(runner)
    seen = []
    generate(runner, PROMPT, max_new_tokens=60, drafter=Oracle(expected), on_tokens=seen.append)
    assert [token for piece in seen for token in piece] == expected
    assert len(seen[0]) == 1 and max(map(len, seen)) > 2


@pytest.mark.parametrize("speculative", [False, True])
def test_a_stop_token_ends_the_text_and_is_its_last(speculative):
    runner = FakeRunner()
    whole = plain_tokens(runner)
    stop = whole[20]
    expected = whole[: whole.index(stop) + 1]
    drafter = Oracle(whole, 7) if speculative else None
    generation = generate(runner, PROMPT, max_new_tokens=60, stop=[stop], drafter=drafter)
    assert generation.tokens == expected and generation.stopped
    assert generation.statistics.new_tokens == len(expected)


@pytest.mark.parametrize("speculative", [False, True])
def test_stop_when_sees_each_token_once_and_ends_the_text(speculative):
    runner = FakeRunner()
    whole = plain_tokens(runner)
    seen = []

    def twenty(token):
        seen.append(token)
        return len(seen) == 20

    drafter = Oracle(whole, 7) if speculative else None
    generation = generate(runner, PROMPT, max_new_tokens=60, stop_when=twenty, drafter=drafter)
    assert generation.tokens == whole[:20] == seen and generation.stopped
    assert generation.statistics.new_tokens == 20


def test_max_new_tokens_is_exact():
    runner = FakeRunner()
    expected = plain_tokens(runner)
    for n in (1, 2, 3, 17):
        generation = generate(runner, PROMPT, max_new_tokens=n, drafter=Oracle(expected))
        assert generation.tokens == expected[:n] and not generation.stopped


@pytest.mark.parametrize("speculative", [False, True])
def test_a_full_cache_ends_the_text(speculative):
    runner = FakeRunner(pages=3)
    expected = plain_tokens(FakeRunner())
    drafter = LookupDrafter(length=8) if speculative else None
    generation = generate(runner, PROMPT, max_new_tokens=60, drafter=drafter)
    # The last token is in no cache.
    assert generation.tokens == expected[: 3 * 16 - len(PROMPT) + 1]
    assert not generation.stopped


def test_calibration_fits_what_room_there_is():
    runner = FakeRunner(pages=1)
    generation = generate(runner, PROMPT, max_new_tokens=60, drafter=LookupDrafter())
    assert len(generation.tokens) == 16 - len(PROMPT) + 1
    assert max(runner.forwards) <= 16


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "at least one token"),
        ([3, VOCABULARY], {}, f"token {VOCABULARY}; the vocabulary is 0 to {VOCABULARY - 1}"),
        ([3, -1], {}, "token -1"),
        ([3] * 33, {}, "33 tokens; there is room for 32"),
        ([3], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_bad_input_leaves_the_cache_alone(prompt, options, message):
    runner = FakeRunner(pages=2)
    with pytest.raises(ValueError, match=message):
        generate(runner, prompt, **options)
    assert runner.cache.committed == {} and runner.forwards == []


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([1.5], {}, "prompts must be integers, got float64"),
        ([True], {}, "prompts must be integers, got bool"),
        ("ab", {}, "prompts must be integers"),
        ([3], {"stop": [1.5]}, "stop must be integers"),
        ([3], {"stop": "ab"}, "stop must be integers"),
        ([3], {"sampling": Sampling(stop_tokens=[1.5])}, "stop_tokens must be integers"),
        ([3], {"sampling": {"temperature": 1}}, r"sampling must be kvctl\.Sampling, got dict"),
        ([3], {"max_new_tokens": 2.5}, "cannot be interpreted as an integer"),
    ],
)
def test_input_of_other_types_leaves_the_cache_alone(prompt, options, message):
    runner = FakeRunner(pages=2)
    with pytest.raises(TypeError, match=message):
        generate(runner, prompt, **options)
    assert runner.cache.committed == {} and runner.forwards == []


def test_an_id_that_is_taken_stays_as_it_was():
    runner = FakeRunner()
    runner.cache.add_sequence(0)
    with pytest.raises(ValueError, match="exists already"):
        generate(runner, PROMPT)
    assert runner.cache.committed == {0: []}


def test_an_error_on_the_way_frees_the_sequence():
    runner = FakeRunner()

    def breaks(tokens):
        runner.broken = True

    with pytest.raises(RuntimeError, match="the forward broke"):
        generate(runner, PROMPT, on_tokens=breaks)
    assert runner.cache.committed == {}


def test_statistics_of_a_single_token_have_no_rates():
    stats = generate(FakeRunner(), PROMPT, max_new_tokens=1).statistics
    assert stats.rounds == 0 and stats.mean_accepted_length == 0.0
    assert stats.tokens_per_second != stats.tokens_per_second
    assert stats.acceptance_by_position == []


@pytest.mark.parametrize("kind", ["delta", "hybrid"])
def test_models_with_recurrent_layers(recurrent_models, kind):
    runner = ModelRunner.load(recurrent_models(kind, emit_steps=True), prefill_chunk_size=16)
    prompt = [token % 64 for token in PROMPT * 3]
    expected = generate(runner, prompt, max_new_tokens=40)
    drafter = LookupDrafter(length=3, branches=False)
    generation = generate(runner, prompt, max_new_tokens=40, drafter=drafter)
    assert generation.tokens == expected.tokens
    assert sum(generation.statistics.accepted) > 0


def test_the_first_text_starts_without_a_throwaway_round():
    runner = FakeRunner(tokens_after=lambda context: (context[-1] + 1) % 17)
    plain = generate(runner, PROMPT, max_new_tokens=100)
    runner.forwards.clear()
    drafter, emitted = LookupDrafter(), []
    fast = generate(
        runner,
        PROMPT,
        max_new_tokens=100,
        drafter=drafter,
        on_tokens=lambda tokens: emitted.append(len(runner.forwards)),
    )
    assert fast.tokens == plain.tokens
    assert emitted == [*range(1, len(emitted) + 1)]  # every forward emitted
    assert len(runner.forwards) == 1 + fast.statistics.rounds


def test_the_costs_of_a_runner_hear_of_the_prefill(monkeypatch):
    runner = FakeRunner(chunk=4)
    heard = []
    monkeypatch.setattr(
        cost_of(runner),
        "observe_prefill",
        lambda rows, seconds: heard.append((rows, seconds > 0)),
    )
    generate(runner, PROMPT, max_new_tokens=5)
    assert heard == [(4, True)]


def test_what_a_round_costs_is_known_to_every_text_of_a_runner():
    runner = FakeRunner()
    assert not cost_of(runner).calibrated
    generate(runner, PROMPT, max_new_tokens=5)
    assert cost_of(runner).calibrated
    assert not cost_of(FakeRunner()).calibrated
