"""`kvctl bench` is a group of commands, one of which needs no name."""

import json

from command_line import run


def test_a_model_without_a_command_is_timed(smollm2, tmp_path):
    for words in ((), ("steps",)):
        done = run(
            *("bench", *words, smollm2, "--rows", "1", "--context", 16, "-n", 2, "--repeat", 1),
            *("--json", tmp_path / "x.json"),
        )
        assert done.returncode == 0, done.stderr
        assert "generation, tokens per second" in done.stdout
        assert json.loads((tmp_path / "x.json").read_text())["steps"]["context"] == 16


def test_commands_and_help_are_no_models():
    done = run("bench", "--help")
    assert done.returncode == 0
    assert {"steps", "spec", "compare", "replay", "results", "referee"} <= set(done.stdout.split())
    assert run("bench").returncode == 2
    done = run("bench", "no/such/model")
    assert done.returncode == 1 and "is it a model directory?" in done.stderr
    done = run("bench", "spec", "no/such/model")
    assert done.returncode == 2 and "--questions" in done.stderr
