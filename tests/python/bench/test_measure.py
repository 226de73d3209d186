"""Measuring configurations in turns: what is answered, by whom, and what is noted."""

import itertools
from collections import Counter

import pytest

from bench_questions import CONFIGURATIONS, QUESTIONS
from fake_text import FakeText, talking_runner
from kvctl import generate
from kvctl.bench import Question
from kvctl.bench.conversation import encode_turn
from kvctl.bench.measure import Measurement
from kvctl.bench.result import Configuration, Result
from kvctl.bench.settings import Settings
from kvctl.bench.spec import bench_spec
from kvctl.draft import DRAFTERS, Draft, Drafter
from kvctl.engine.costs import cost_of
from kvctl.tree import TokenTree
from simulated_time import Clock, TimedRunner


class WrongDrafter(Drafter):
    """Drafts a tree of three nodes that is hardly ever right."""

    def propose(self, requests, budget):
        return [
            Draft(TokenTree([one.root, 1, 2, 3], [-1, 0, 0, 1]))
            if one.limit >= 3
            else Draft.nothing(one.root)
            for one in requests
        ]


def test_plain_decoding_is_measured_for_every_batch(result):
    names = [one.name for one in result.configurations]
    assert names == ["plain", "lookup", "lookup:length=3", "plain / batch 2", "lookup / batch 2"]
    turns = Counter(one.configuration for one in result.answers)
    assert turns == dict.fromkeys(range(5), sum(len(q.turns) for q in QUESTIONS))


def test_all_texts_are_plain_decodings(result):
    assert not result.differences
    texts = {}
    for one in result.answers:
        texts.setdefault((one.question_id, one.turn), set()).add(tuple(one.tokens))
    assert all(len(found) == 1 for found in texts.values())


def test_answers_are_what_generate_says(result):
    runner = talking_runner()
    said = []
    for turn in range(3):
        prompt = encode_turn(runner.text, QUESTIONS[4], said)
        alone = generate(runner, prompt, max_new_tokens=40, stop=runner.text.stop_tokens)
        [one] = [
            one for one in result.of(0) if one.question_id == QUESTIONS[4].id and one.turn == turn
        ]
        assert one.tokens == alone.tokens and one.prompt_tokens == len(prompt)
        said.append(one.text)


def test_rounds_add_up_to_the_tokens(result):
    for one in result.answers:
        assert sum(part.emitted for part in one.rounds) == len(one.tokens) - 1
        for part in one.rounds:
            assert part.accepted <= part.reached <= part.depth <= part.nodes
            assert part.emitted <= part.accepted + 1


def test_rounds_are_those_of_the_statistics():
    runner, questions = talking_runner(), [Question(1, "x", ("tell me more of it",))]
    measurement = Measurement(
        runner, questions, [Configuration("lookup:length=4")], Settings(max_new_tokens=60)
    )
    measurement.run()
    drafted = [one for one in measurement.answers if one.configuration == 1]
    prompt = encode_turn(runner.text, questions[0], [])
    stats = generate(
        runner,
        prompt,
        max_new_tokens=60,
        drafter=DRAFTERS["lookup"](length=4),
        stop=runner.text.stop_tokens,
    ).statistics
    rounds = [part for part in drafted[0].rounds if part.nodes]
    assert len(drafted[0].rounds) == stats.rounds and len(rounds) == stats.speculative_rounds
    assert [sum(r.reached > d for r in rounds) for d in range(4)] == stats.reached
    assert [sum(r.accepted > d for r in rounds) for d in range(4)] == stats.accepted


def test_passes_keep_the_least_time_and_have_new_drafters(monkeypatch):
    made = []

    def make():
        made.append(WrongDrafter())
        return made[-1]

    monkeypatch.setitem(DRAFTERS, "wrong", make)
    calls = []
    result = bench_spec(
        talking_runner(),
        QUESTIONS[:2],
        [Configuration("wrong")],
        Settings(max_new_tokens=8, passes=3),
        advance=lambda: calls.append(1),
    )
    assert len(calls) == 3 * 2 * 2
    assert len(made) == 4  # one of them for the warm-up
    for one in result.answers:
        assert len(one.seconds) == 3 and one.least_seconds == min(one.seconds)
    assert all(one.tokens for one in result.answers) and not result.differences


def test_one_question_is_looked_at_closely(result):
    shown = {(one.question_id, one.turn) for one in result.answers if one.trees}
    assert len(shown) == 1
    for one in result.answers:
        if one.trees:
            assert len(one.trees) == len(one.rounds)
            for (tokens, parents, accepted), part in zip(one.trees, one.rounds, strict=True):
                assert len(tokens) == len(parents) == part.nodes + 1
                assert len(accepted) == part.accepted
                assert all(str(token) in result.tokens for token in tokens)


def test_turns_without_room_are_skipped():
    runner = talking_runner()
    runner.context_window_size = 60
    questions = [Question(1, "x", ("short", "y" * 50)), Question(2, "x", ("z" * 70, "more"))]
    result = bench_spec(runner, questions, [Configuration("lookup")], Settings(max_new_tokens=20))
    assert [(one["question_id"], one["turn"]) for one in result.skipped] == [(1, 1), (2, 0)]
    assert {one.question_id for one in result.answers} == {1}
    with pytest.raises(ValueError, match="no question has room"):
        bench_spec(runner, questions[1:], [Configuration("lookup")], Settings(max_new_tokens=20))


def test_what_is_wrong_is_refused():
    runner = talking_runner()
    with pytest.raises(ValueError, match="there is no question"):
        bench_spec(runner, [], CONFIGURATIONS)
    with pytest.raises(ValueError, match="there is no configuration"):
        bench_spec(runner, QUESTIONS, [])
    with pytest.raises(ValueError, match="a batch must be at least 1, got 0"):
        bench_spec(runner, QUESTIONS, [Configuration("lookup", batch=0)])
    with pytest.raises(ValueError, match="there is no drafter 'nobody'"):
        bench_spec(runner, QUESTIONS, [Configuration("nobody")])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        Settings(max_new_tokens=0)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        Settings(temperature=-1)


def test_sampled_texts_are_plain_decodings_by_seed():
    settings = Settings(max_new_tokens=30, temperature=0.8, seed=5)
    result = bench_spec(
        talking_runner(),
        QUESTIONS,
        [Configuration("lookup:length=3", batch=b) for b in (1, 3)],
        settings,
    )
    assert not result.differences
    assert len({tuple(one.tokens) for one in result.of(0)}) > 5  # each turn has its own seed


def test_the_file_holds_everything(result, tmp_path):
    result.save(tmp_path / "result.json", figures=[1])
    assert Result.load(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no result of kvctl bench spec: None"),
        ('{"schema": "kvctl.bench.spec/9"}', "spec/9"),
        ('{"schema": "kvctl.bench.spec/1"}', "is damaged"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Result.load(tmp_path / "x.json")


def test_the_drivers_own_time_is_measured(result):
    assert result.settings["driver_overhead"] > 0
    assert result.settings["measured_seconds"] == pytest.approx(
        sum(sum(one.seconds) for one in result.answers)
    )


def following(context):
    return (5 * context[-1] + 3) % 37


def timed_runner(monkeypatch):
    """A runner whose rounds take a second, and an eighth for each drafted row."""
    runner = TimedRunner(Clock(monkeypatch), following, row=0.125)
    runner.text = FakeText()
    return runner


class Betting(Drafter):
    """Drafts a token that it is sure of, and notes what its texts may lose."""

    def __init__(self, *, right):
        self.right, self.purses, self.costs = right, [], []

    def propose(self, requests, budget):
        [one] = requests
        budget.affords(requests)
        self.purses.append(budget.purse(one.id))
        self.costs.append(budget.cost)
        token = following(one.tokens) if self.right else 38
        return [Draft(TokenTree([one.root, token], [-1, 0]), rates=[1.0, 0.9])]


def measured(monkeypatch, others=(), *, right=False):
    """Return the drafters of the two passes of a configuration that is measured beside others."""
    made = []

    def make():
        made.append(Betting(right=right))
        return made[-1]

    monkeypatch.setitem(DRAFTERS, "betting", make)
    monkeypatch.setitem(DRAFTERS, "wrong", WrongDrafter)
    Measurement(
        timed_runner(monkeypatch),
        QUESTIONS,
        [*map(Configuration, others), Configuration("betting")],
        Settings(max_new_tokens=20, passes=2),
    ).run()
    return made[1:]  # the first one was warmed up


def test_what_a_configuration_learns_reaches_no_other_one(monkeypatch):
    alone = measured(monkeypatch)
    beside = measured(monkeypatch, ["lookup", "wrong", "suffix"])
    assert [one.purses for one in beside] == [one.purses for one in alone]
    assert len({id(cost) for one in beside for cost in one.costs}) == 1  # of both passes
    known, cost = alone[0].costs[0], beside[0].costs[0]
    assert cost.points == known.points == [(2, 1.125)]
    assert cost.timed_rounds == known.timed_rounds


def test_a_measurement_leaves_what_is_known_of_the_runner_alone(monkeypatch):
    runner = timed_runner(monkeypatch)
    before = cost_of(runner)
    questions = QUESTIONS[:2]
    Measurement(runner, questions, [Configuration("lookup")], Settings(max_new_tokens=8)).run()
    assert cost_of(runner) is before and not before.calibrated


def test_texts_of_a_pass_may_lose_what_others_gained(monkeypatch):
    """As those of any drafter; a pass begins without."""
    for drafter in measured(monkeypatch, right=True):
        purses = drafter.purses
        begins = [new for old, new in itertools.pairwise(purses) if new < old]
        assert purses[0] == 0.3 and len(begins) > 6
        assert begins == pytest.approx([2.3] * len(begins))
