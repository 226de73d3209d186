"""Two results compared, question by question."""

from dataclasses import replace

import pytest

from bench_questions import CONFIGURATIONS, QUESTIONS
from command_line import run
from fake_text import talking_runner
from kvctl.bench import Configuration, Settings, bench_spec
from kvctl.bench.compare import compare, complaints


def faster(result, factor):
    """The same result from a machine that took `factor` of the time with drafts."""
    answers = [
        replace(one, seconds=[factor * s for s in one.seconds])
        if result.configurations[one.configuration].drafter
        else one
        for one in result.answers
    ]
    return replace(result, answers=answers)


def test_a_result_is_as_fast_as_itself(result):
    pairs = compare(result, result)
    assert [pair.first.name for pair in pairs] == [one.name for one in result.configurations]
    for pair in pairs:
        assert pair.speed == pair.speedup == pair.tokens_per_round
        assert pair.speed.value == 1.0 and pair.questions == len(QUESTIONS)
        assert pair.same == pair.answers
    assert complaints(result, result) == []


def test_pairing_removes_what_questions_have_in_common(result):
    pairs = compare(result, faster(result, 0.5))
    drafted = [pair for pair in pairs if pair.first.drafter]
    for pair in drafted:
        assert pair.speed.value == pytest.approx(2) and pair.speedup.value == pytest.approx(2)
        if pair.first.batch == 1:  # every question is twice as fast, so there is no doubt
            assert pair.speed.low == pytest.approx(2) and pair.speed.high == pytest.approx(2)


def test_the_only_drafters_of_two_results_are_a_pair():
    settings = Settings(max_new_tokens=12)
    one, other = (
        bench_spec(talking_runner(), QUESTIONS[:3], [Configuration(name)], settings)
        for name in ("lookup", "suffix")
    )
    pairs = compare(one, other)
    assert [(p.first.name, p.second.name) for p in pairs] == [
        ("plain", "plain"),
        ("lookup", "suffix"),
    ]
    assert pairs[1].same == pairs[1].answers


def test_only_shared_questions_count(result):
    settings = Settings(max_new_tokens=40)
    other = bench_spec(talking_runner(), QUESTIONS[2:5], CONFIGURATIONS[:1], settings)
    assert compare(result, other)[1].questions == 3
    assert "only questions of the same id" in complaints(result, other)[0]
    strangers = [replace(question, id=1000 + i) for i, question in enumerate(QUESTIONS)]
    stranger = bench_spec(talking_runner(), strangers, CONFIGURATIONS[:1], settings)
    with pytest.raises(ValueError, match="no question has the same id"):
        compare(result, stranger)


def test_complaints_name_what_differs(result):
    other = replace(
        result, settings=result.settings | {"seed": 4}, model="other", machine={"cpu": "x"}
    )
    found = " ".join(complaints(result, other))
    assert "differ in seed: 0 and 4" in found and "The models differ" in found
    assert "machines differ in cpu" in found


def test_the_command(result, tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    result.save(paths[0])
    faster(result, 0.5).save(paths[1])
    done = run("bench", "compare", *paths)
    assert done.returncode == 0 and "2.000x" in done.stdout, done.stderr
    done = run("bench", "compare", paths[0], tmp_path / "nowhere.json")
    assert done.returncode == 1 and "there is no file" in done.stderr
