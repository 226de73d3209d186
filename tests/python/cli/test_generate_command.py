import json
import shutil
import sys
from importlib.util import find_spec

import pytest

from command_line import run
from kvctl.cli.generate import read_prompt


def test_compare_shows_the_same_tokens(talking_model):
    done = run("generate", talking_model, "abcabcabc", "--compare", "-n", "40")
    assert done.returncode == 0, done.stderr
    assert "The same 40 tokens" in done.stdout
    for part in ("plain", "speculative", "tokens/s", "draft", "forward", "verify", "rollback"):
        assert part in done.stdout


def test_the_type_of_k_and_v_is_chosen(talking_model):
    options = ("--kv-dtype", "int8", "--compare", "-n", "20")
    done = run("generate", talking_model, "abcabcabc", *options)
    assert done.returncode == 0, done.stderr
    assert "The same 20 tokens" in done.stdout
    done = run("generate", talking_model, "abc", "--kv-dtype", "int3")
    assert done.returncode == 1
    assert (
        "kv_dtype must be float32, float16, bfloat16, int8 or float8_e4m3fn, got int3"
        in done.stderr
    )


def test_sampled_compare_from_stdin(talking_model):
    done = run(
        "generate", talking_model, "--compare", "-n", "20", "--temperature", "0.8", text="hello\n"
    )
    assert done.returncode == 0, done.stderr
    assert "The same 20 tokens" in done.stdout


def test_prompt_from_a_file_plainly(talking_model, tmp_path):
    (tmp_path / "prompt.txt").write_text("xyz")
    options = ("--prompt-file", tmp_path / "prompt.txt", "-n", "5", "--draft", "none")
    done = run("generate", talking_model, *options)
    assert done.returncode == 0, done.stderr
    assert "5 tokens in 5 forwards; prompt of 3" in done.stdout
    assert "accepted" not in done.stdout


@pytest.mark.skipif(find_spec("xgrammar") is not None, reason="xgrammar is installed")
def test_without_xgrammar_a_grammar_is_refused(talking_model, tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    done = run("generate", talking_model, "hi", "--json-schema", tmp_path / "schema.json")
    assert done.returncode == 1
    assert "which is not installed: pip install kvctl[grammar]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model", "hi"], "has no mlc-chat-config.json: is it a model directory?"),
        (["{model}", "hi", "--draft", "magic"], "--draft is lookup or none, not magic"),
        (["{model}", " "], "the prompt is empty"),
        (["{model}", "hi", "--grammar", "a", "--json-schema", "b"], "either --json-schema or"),
        (["{model}", "hi", "--grammar", "no-such-file"], "no-such-file"),
        (["{model}", "hi", "--prompt-file", "x"], "either as an argument or as a file"),
        (["{model}", "--prompt-file", "no-such-file"], "no-such-file"),
        (["{model}", "--prompt-file", sys.executable], "is no text in UTF-8"),
        (["{model}", "hi" * 400], "there is room for 512 in the cache"),
    ],
)
def test_mistakes_are_one_line(talking_model, arguments, message):
    done = run("generate", *(part.format(model=talking_model) for part in arguments))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def test_a_truncated_model_is_one_line(talking_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(talking_model, broken)
    shard = next(broken.glob("params_shard_*.bin"))
    shard.write_bytes(shard.read_bytes()[:-100])
    done = run("generate", broken, "hi")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and shard.name in done.stderr, done.stderr


def test_bench_measures_and_writes_json(talking_model):
    done = run("bench", talking_model, "--rows", "1,4", "-n", "12", "--repeat", "1", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["steps"]["verify"]) == {"1", "4"}
    assert result["steps"]["decode"]["least"] > 0
    assert [one["name"] for one in result["generation"]] == ["copy", "open"]
    assert all(one["same"] for one in result["generation"])
    assert result["versions"]["apache-tvm"] and result["cpu"]
    assert "verify 4" in done.stderr


def test_bench_refuses_rows_that_are_none(talking_model):
    done = run("bench", talking_model, "--rows", "1,x")
    assert done.returncode == 1 and "--rows takes positive numbers" in done.stderr


def test_prompt_keeps_all_but_the_last_newline(tmp_path):
    (tmp_path / "p").write_text("a\n\nb\n\n")
    assert read_prompt(None, tmp_path / "p") == "a\n\nb\n"
