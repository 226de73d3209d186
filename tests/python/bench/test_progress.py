"""An interrupted measurement goes on with the next question."""

import json
from dataclasses import replace

import pytest

from bench_questions import CONFIGURATIONS, QUESTIONS
from fake_text import talking_runner
from kvctl.bench.progress import Progress
from kvctl.bench.result import Configuration
from kvctl.bench.settings import Settings
from kvctl.bench.spec import bench_spec
from kvctl.draft import DRAFTERS, ModelDrafter

SETTINGS = Settings(max_new_tokens=20, passes=2)


class Interrupted(Exception):
    pass


def measure(
    progress,
    *,
    calls=None,
    questions=QUESTIONS,
    configurations=CONFIGURATIONS,
    settings=SETTINGS,
    identity=None,
):
    """Measure; interrupt it after so many calls of `advance`."""
    left = [calls]

    def advance():
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted

    runner = talking_runner()
    runner.identity = identity
    return bench_spec(
        runner, questions, configurations, settings, progress=progress, advance=advance
    )


def without_times(result):
    """Return what times have no part in; how much an adaptive drafter drafts depends on them."""
    return [
        (one.configuration, one.question_id, one.turn, one.tokens, one.text, len(one.seconds))
        for one in result.answers
    ]


@pytest.mark.parametrize("calls", [0, 7, 30, 39])
def test_the_answers_are_those_of_an_uninterrupted_run(tmp_path, calls):
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Interrupted):
        measure(Progress(path), calls=calls)
    before = path.read_text().splitlines()
    result = measure(Progress(path, resume=True))
    after = path.read_text().splitlines()
    assert 0 < len(before) - 1 < len(after) - 1
    assert after[1 : len(before)] == before[1:]
    whole = measure(None)
    assert without_times(result) == without_times(whole)
    assert result.settings["resumed"] == 1 and "resumed" not in whole.settings
    assert result.settings["driver_overhead"] > 0
    again = measure(Progress(path, resume=True))  # nothing is left to measure
    assert path.read_text().splitlines()[1:] == after[1:]
    assert again.answers == result.answers and again.settings["resumed"] == 1


def test_a_line_that_was_cut_is_measured_again(tmp_path):
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Interrupted):
        measure(Progress(path), calls=12)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:-9])
    result = measure(Progress(path, resume=True))
    assert without_times(result) == without_times(measure(None))


def test_another_measurement_is_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Interrupted):
        measure(Progress(path), calls=12)
    content = path.read_bytes()
    other = replace(SETTINGS, seed=1)
    with pytest.raises(ValueError, match="was interrupted, with other settings; begin anew"):
        measure(Progress(path, resume=True), settings=other)
    with pytest.raises(ValueError, match="with other questions"):
        measure(Progress(path, resume=True), questions=QUESTIONS[:2])
    assert path.read_bytes() == content
    measure(Progress(path), settings=other)  # begins anew
    assert json.loads(path.read_text().splitlines()[0])["what"]["settings"]["seed"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no whole line"),
        ('{"schema": "kvctl.bench.progress/9"}\n', "progress/9"),
        ('{"schema": "kvctl.bench.progress/1"}\n', "is damaged"),
        ("[]\n", "must hold a JSON object"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "progress.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        measure(Progress(path, resume=True))
    assert path.read_text() == content


def test_a_damaged_part_is_refused(tmp_path):
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Interrupted):
        measure(Progress(path), calls=7)
    first, *_ = path.read_text().splitlines(keepends=True)
    path.write_text(first + '{"answers": []}\n')
    with pytest.raises(ValueError, match="is damaged"):
        measure(Progress(path, resume=True))


def test_a_model_that_was_compiled_again_is_another(tmp_path):
    """What was measured of the library before was given as the new one's."""
    path = tmp_path / "progress.jsonl"
    measure(Progress(path), identity="lib.so 1")
    before = path.read_text()
    with pytest.raises(ValueError, match=r"another measurement was .*, with other library; begin"):
        measure(Progress(path, resume=True), identity="lib.so 2")
    assert path.read_text() == before
    measure(Progress(path, resume=True), identity="lib.so 1")
    older = json.loads(before.splitlines()[0])
    del older["what"]["library"]
    path.write_text("\n".join([json.dumps(older), *before.splitlines()[1:]]) + "\n")
    measure(Progress(path, resume=True), identity="lib.so 2")


def test_a_draft_model_that_was_compiled_again_is_another(tmp_path, monkeypatch):
    """Answers drafted by the model before were given as the new one's."""
    path, draft_model = tmp_path / "progress.jsonl", talking_runner()
    monkeypatch.setitem(DRAFTERS, "drafting", lambda: ModelDrafter(draft_model, length=2))
    for spec in ("drafting", "lookup+drafting"):
        configurations = [Configuration(spec)]
        draft_model.identity = "draft.so 1"
        measure(Progress(path), configurations=configurations)
        before = path.read_text()
        draft_model.identity = "draft.so 2"
        with pytest.raises(ValueError, match=r"was interrupted, with other drafters; begin anew"):
            measure(Progress(path, resume=True), configurations=configurations)
        assert path.read_text() == before
        draft_model.identity = "draft.so 1"
        measure(Progress(path, resume=True), configurations=configurations)
    older = json.loads(before.splitlines()[0])
    del older["what"]["drafters"]
    path.write_text("\n".join([json.dumps(older), *before.splitlines()[1:]]) + "\n")
    measure(Progress(path, resume=True), configurations=configurations)
