"""What rounds cost is remembered between processes, and nothing about it fails a generation."""

from __future__ import annotations

import json
import os
import threading

import pytest

from fake_runner import FakeRunner
from kvctl import ModelRunner, generate
from kvctl.draft import LookupDrafter
from kvctl.engine import cost_file, costs

PROMPT = [5, 6, 7, 8, 9, 5, 6]
POINTS = [(2, 1.1), (9, 1.5)]


class Named(FakeRunner):
    """A runner that has an identity."""

    identity = "a model"

    def __init__(self):
        super().__init__(tokens_after=lambda context: (context[-1] + 1) % 17)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KVCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file_of(folder):
    return folder / "round_costs.json"


def speculate(runner):
    return generate(runner, PROMPT, max_new_tokens=200, drafter=LookupDrafter(length=5))


def test_the_next_process_begins_with_what_was_learnt(folder):
    speculate(Named())
    speculate(Named())
    key = cost_file.key_of("a model")
    kept = cost_file.recall(key)
    assert kept and [rows for rows, _ in kept] == sorted({rows for rows, _ in kept})
    fresh = costs.cost_of(Named())
    assert [rows for rows, _ in fresh.points] == [rows for rows, _ in kept]
    assert not fresh.calibrated and fresh.timed_rounds > 0


def test_another_machine_model_thread_count_or_version_is_another_key(monkeypatch):
    key = cost_file.key_of("a model")
    assert key == cost_file.key_of("a model") != cost_file.key_of("another model")
    for change in ("platform.node", "os.cpu_count"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kvctl.engine.cost_file.{change}", lambda: 77)
            patch.setattr(f"kvctl.engine.cost_file.{change}", lambda: "77")
            assert cost_file.key_of("a model") != key
    with monkeypatch.context() as patch:
        patch.setattr("kvctl.engine.cost_file.ffi.build.get_version", lambda: "0")
        assert cost_file.key_of("a model") != key


def test_a_runner_without_a_name_is_not_remembered(folder):
    speculate(FakeRunner(tokens_after=lambda context: (context[-1] + 1) % 17))
    assert not folder.exists()


def test_a_runner_without_a_hash_runs_all_the_same():
    class Unhashable(FakeRunner):
        __hash__ = None

    tokens = generate(Unhashable(), PROMPT, max_new_tokens=20, drafter=LookupDrafter()).tokens
    assert tokens == generate(FakeRunner(), PROMPT, max_new_tokens=20).tokens


def test_a_compiled_model_is_remembered(tiny_model, folder):
    runner = ModelRunner.load(tiny_model)
    prompt = [1, 2, 3] * 9
    for _ in range(4):
        generate(runner, prompt, max_new_tokens=40, drafter=LookupDrafter(length=4))
        generate(runner, prompt, max_new_tokens=10)
    assert json.loads(file_of(folder).read_text())
    again = ModelRunner.load(tiny_model)
    assert again.identity == runner.identity
    assert costs.cost_of(again).points


def test_the_type_of_k_and_v_is_part_of_a_models_name(tiny_model):
    runners = [ModelRunner.load(tiny_model, kv_dtype=one) for one in (None, "float16", "bfloat16")]
    assert len({runner.identity for runner in runners}) == 3
    assert ModelRunner.load(tiny_model, kv_dtype="float32").identity == runners[0].identity


BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[1, 2]",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "large": b" " * (2 << 20) + b"{}",
    "twice": b'{"a": 1, "a": 2}',
    "numbers": b'{"KEY": 3}',
    "no points": b'{"KEY": {"points": 3}}',
    "odd points": b'{"KEY": {"points": [3, [1], [1, 2, 3], ["a", 2], [2, "b"], [2.5, 2], null]}}',
    "unlikely points": b'{"KEY": {"points": [[-4, 2], [9999, 2], [3, 1e999], [4, -1], [5, NaN]]}}',
    "beyond any float": b'{"KEY": {"points": [[2, 1' + b"0" * 400 + b"]]}}",
    "true": b'{"KEY": {"points": [[true, true]], "used": true}}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_as_none_and_is_replaced(folder, kind):
    folder.mkdir()
    key = cost_file.key_of("a model")
    file_of(folder).write_bytes(BROKEN[kind].replace(b"KEY", key.encode()))
    expected = speculate(FakeRunner(tokens_after=lambda c: (c[-1] + 1) % 17)).tokens
    runner = Named()
    assert costs.cost_of(runner).points == []
    assert speculate(runner).tokens == expected
    assert cost_file.remember(key, POINTS)
    assert cost_file.recall(key) == POINTS


@pytest.mark.parametrize("kind", ["a file", "read-only", "the file is a folder", "a fifo"])
def test_a_folder_that_cannot_be_used_fails_nothing(folder, kind, monkeypatch):
    if kind == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
    if kind == "read-only":
        monkeypatch.setenv("KVCTL_CACHE_DIR", "/proc/kvctl")
    elif kind == "the file is a folder":
        file_of(folder).mkdir()
    elif kind == "a fifo":
        os.mkfifo(file_of(folder))
    assert len(speculate(Named()).tokens) == 200
    assert cost_file.recall("a") == []
    assert not cost_file.remember("a", POINTS)


def test_no_home(monkeypatch):
    monkeypatch.delenv("KVCTL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cost_file.cache_dir()) == "/somewhere/kvctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cost_file.cache_dir().name == "kvctl"

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr("kvctl.engine.cost_file.Path.home", homeless)
    assert cost_file.recall("a") == [] and not cost_file.remember("a", POINTS)


def test_the_file_stays_small(folder, monkeypatch):
    now = [0]
    monkeypatch.setattr("kvctl.engine.cost_file.time.time", lambda: now[0])
    for i in range(100):
        now[0] = i
        cost_file.remember(f"model {i}", [(rows, 2.0) for rows in range(2, 500)])
    assert cost_file.recall("model 10") == []
    assert len(cost_file.recall("model 99")) == 128
    assert file_of(folder).stat().st_size < 1 << 20
    assert [path.name for path in folder.iterdir()] == ["round_costs.json"]


def test_readers_never_see_a_part(folder):
    cost_file.remember("a", POINTS)
    broken, done = [], threading.Event()

    def read():
        while not done.is_set():
            if cost_file.recall("a") != POINTS:
                broken.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(200):
        cost_file.remember(f"b{i % 9}", POINTS)  # few enough that none makes room
    done.set()
    reader.join()
    assert not broken
