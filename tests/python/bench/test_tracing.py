"""Traces of real generations, and replays of every rule over them."""

import numpy as np
import pytest

from bench_questions import QUESTIONS
from command_line import run
from fake_text import talking_runner
from kvctl import generate
from kvctl.bench.conversation import encode_turn
from kvctl.bench.replays import Cost, replay_all
from kvctl.bench.tracing import Recorder, record
from kvctl.draft import LookupDrafter
from kvctl.verification import RULES, Sampling, Trace


@pytest.fixture(scope="module")
def trace():
    return record(talking_runner(), QUESTIONS, LookupDrafter(length=4), rounds=30)


def test_rounds_are_recorded(trace):
    assert len(trace) >= 30
    assert all(2 <= len(tree) for tree in trace.trees)
    assert {name for names in trace.drawn for name in names} == {"deterministic"}


def test_the_text_is_plain_samplings():
    runner, sampling = talking_runner(), Sampling(temperature=0.7)
    prompt = encode_turn(runner.text, QUESTIONS[0], [])
    texts = [
        generate(
            runner,
            prompt,
            max_new_tokens=60,
            sampling=sampling,
            seed=3,
            stop=runner.text.stop_tokens,
            **drafting,
        ).tokens
        for drafting in (
            {},
            {"drafter": LookupDrafter(length=3), "rule": Recorder(Trace())},
        )
    ]
    assert texts[0] == texts[1]


def test_replays_are_exact(trace):
    found = {one.rule: one for one in replay_all(trace, Cost())}
    assert set(found) == set(RULES)
    assert found["block"].replay is None  # refused: it takes chains alone
    rules = ("target_only", "traversal")
    means = [found[rule].replay.mean_emitted for rule in rules]
    assert means[0] == pytest.approx(means[1])  # of deterministic drafts all accept as much
    assert found["target_only"].speedup == pytest.approx(means[0])


def test_costs():
    cost = Cost.parse("1:1,2:1.2,4:2", 0.1)
    assert [cost(n) for n in (0, 1, 2, 3, 5)] == pytest.approx([1, 1.3, 1.8, 2.3, 3.3])
    for text in ("", "2:1", "1:1,1:2", "1:0", "1", "1:x", "1:1,3:2,2:2"):
        with pytest.raises(ValueError, match="costs are rows:cost"):
            Cost.parse(text)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Cost.parse("1:1", -1.0)


def test_what_is_wrong_is_refused(trace):
    with pytest.raises(ValueError, match="the trace is empty"):
        replay_all(Trace(), Cost())
    with pytest.raises(ValueError, match=r"rule must be one of .*; got 'none'"):
        replay_all(trace, Cost(), rules=["none"])
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        replay_all(trace, Cost(), depths=[-1])
    with pytest.raises(ValueError, match="temperature above 0"):
        record(talking_runner(), QUESTIONS, LookupDrafter(), temperature=0)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        record(talking_runner(), QUESTIONS, LookupDrafter(), rounds=0)


def test_the_replay_command(trace, tmp_path):
    trace.save(tmp_path / "t.npz")
    done = run(
        *("bench", "replay", tmp_path / "t.npz", "--depth", "1,all", "--rule", "traversal"),
        *("--cost", "1:1,5:1.5"),
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│ traversal")]
    assert len(rows) == 2 and sum("*" in row for row in rows) >= 1
    done = run("bench", "replay", tmp_path / "t.npz", "--depth", "x")
    assert done.returncode == 1 and "--depth takes numbers or 'all'" in done.stderr


def test_target_distributions_are_those_of_the_temperature(trace):
    rows = np.concatenate(trace._target)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-5)
