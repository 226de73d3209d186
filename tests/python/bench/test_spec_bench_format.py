"""The answers, evaluated as Spec-Bench's scripts evaluate them, give the report's figures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kvctl.bench.answer_files import save_answers
from kvctl.bench.figures import figures_of
from kvctl.bench.result import Configuration

MT_BENCH = {
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
}


def evaluate(own_file, plain_file, task):
    """Spec-Bench's figures from its format: mean tokens/s, speed-up, mean accepted tokens.

    Its script counts plain decoding's tokens again with the tokenizer; here they are as counted.
    """

    def wanted(category):
        return (
            task == "overall" or category == task or (task == "mt_bench" and category in MT_BENCH)
        )

    def read(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line["choices"][0] for line in lines if wanted(line["category"])]

    own, plain = read(own_file), read(plain_file)
    speeds = [sum(one["new_tokens"]) / sum(one["wall_time"]) for one in own]
    plain_speeds = [sum(one["new_tokens"]) / sum(one["wall_time"]) for one in plain]
    accepted = [length for one in own for length in one["accept_lengths"]]
    return np.mean(speeds), np.mean(speeds) / np.mean(plain_speeds), np.mean(accepted)


def test_the_figures_are_the_reports(result, tmp_path):
    paths = save_answers(result, tmp_path / "answers")
    for one in figures_of(result):
        configuration = result.configurations[one.configuration]
        plain = paths[result.configurations.index(configuration.plain)]
        speed, ratio, accepted = evaluate(paths[one.configuration], plain, one.category)
        assert one.tokens_per_second == pytest.approx(speed, rel=1e-12)
        assert one.speedup.value == pytest.approx(ratio, rel=1e-12)
        assert one.tokens_per_round == pytest.approx(accepted, rel=1e-12)


def test_mt_bench_categories_are_found(result, tmp_path):
    paths = save_answers(result, tmp_path)
    assert evaluate(paths[1], paths[0], "mt_bench")[1] > 0


def test_a_line_has_spec_benchs_fields(result, tmp_path):
    paths = save_answers(result, tmp_path)
    assert [path.name for path in paths] == [
        "plain.jsonl",
        "lookup.jsonl",
        "lookup-length=3.jsonl",
        "plain-batch-2.jsonl",
        "lookup-batch-2.jsonl",
    ]
    for path in paths:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["question_id"] for line in lines] == [81, 82, 83, 84, 85, 86]
        for line in lines:
            [choice] = line["choices"]
            assert choice["index"] == 0 and line["model_id"].startswith("fake-")
            turns = len(choice["turns"])
            for name in ("decoding_steps", "new_tokens", "wall_time"):
                assert len(choice[name]) == turns
            assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - turns


def test_drafters_whose_directories_end_alike_stay_apart(result, tmp_path):
    """The last one's answers were all that was left, and the tables called both the same."""
    directories = ["a/head", "b/head", "b-head"]
    drafters = [f"head:directory={one},nodes=6" for one in directories]
    configurations = [Configuration(None), *map(Configuration, drafters)]
    changed = replace(result, configurations=configurations, differences=[])
    changed.answers = [one for one in result.answers if one.configuration < 3]
    changed.answers += [replace(one, configuration=3) for one in result.of(1)]
    assert changed.names == [
        "plain",
        "head:directory=a/head,nodes=6",
        "head:directory=b/head,nodes=6",
        "head:directory=b-head,nodes=6",
    ]
    paths = save_answers(changed, tmp_path)
    assert len(set(paths)) == 4 and all(path.read_text() for path in paths)
    assert paths[2].read_text() != paths[3].read_text()
    changed.configurations = [Configuration(None), *map(Configuration, drafters[1:])]
    changed.answers = changed.of(0) + changed.of(1)
    assert changed.names[1:] == ["head:directory=head,nodes=6", "head:directory=b-head,nodes=6"]
