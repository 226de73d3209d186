"""Whatever stdin, stdout and the arguments are: a sentence and a status, never a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KVCTL = Path(sys.executable).with_name("kvctl")
SHELL = "/bin/bash"
FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not KVCTL.exists(), reason="needs the command: pip install kvctl")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def shell(script, *arguments, **environment):
    """Run a shell script in which "$@" is the kvctl command line."""
    return subprocess.run(
        [SHELL, "-o", "pipefail", "-c", script, "sh", KVCTL, *map(os.fsencode, arguments)],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def assert_one_sentence(done, status=1):
    error = done.stderr.decode()
    assert done.returncode == status, (done.stdout, error)
    assert "Traceback" not in error and "Exception ignored" not in error, error
    assert len(error.splitlines()) == 1 and error.startswith("kvctl: "), error
    return error


@pytest.fixture
def generate(talking_model):
    return ["generate", str(talking_model), "hi", "-n", "5"]


def test_closed_stdin(generate):
    done = shell('"$@" <&-', *generate)
    assert done.returncode == 0 and b"5 tokens" in done.stdout, done.stderr
    error = assert_one_sentence(shell('"$@" <&-', *generate[:2], "-n", "5"))
    assert "give a prompt" in error
    assert shell('"$@" <&-', "doctor").stderr == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_outputs(generate, closed):
    done = shell(f'"$@" {closed}', *generate)
    assert done.returncode == 0 and done.stderr == b""
    failing = shell(f'"$@" {closed}', *generate, "--draft", "magic")
    assert failing.returncode == 1 and b"Traceback" not in failing.stderr
    assert shell(f'"$@" {closed}', "--version").stderr == b""
    assert shell(f'"$@" {closed}', "doctor").stderr == b""


@needs_full
@pytest.mark.parametrize("command", [["-h"], ["--version"], ["doctor"], ["generate", "-h"], None])
def test_stdout_on_a_full_disk(generate, command):
    done = shell('"$@" > /dev/full', *(command or generate))
    assert "No space left on device" in assert_one_sentence(done)


@pytest.mark.parametrize("command", [["-h"], ["doctor"], None])
def test_a_reader_that_goes_away(generate, command):
    command = command or [*generate[:-1], "400"]
    done = shell('"$@" | head -c 1', *command)
    assert len(done.stdout) == 1 and done.stderr == b""
    assert done.returncode in (0, 1)
    done = shell('"$@" | true', *command)
    assert done.stdout == b"" and done.stderr == b"" and done.returncode in (0, 1)


def test_arguments_that_are_no_utf8(generate, tmp_path):
    strange = os.fsdecode(b"\xff\xfe")
    for command, message in [
        (["generate", strange, "hi"], "is it a model directory?"),
        ([*generate[:2], strange], "no text in UTF-8"),
        ([*generate[:2], "--prompt-file", strange], "No such file"),
        ([*generate, "--draft", strange], "--draft is lookup or none"),
        ([*generate, "--system", strange], "--system"),
        (["compile", strange, "-o", str(tmp_path / "out")], "there is no model at"),
        (["bench", strange], "is it a model directory?"),
    ]:
        assert message in assert_one_sentence(shell('"$@"', *command))
    for command in ([strange], ["generate", *generate[1:4], strange]):
        done = shell('"$@"', *command)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_a_directory_that_is_no_utf8(talking_model, tmp_path):
    link = tmp_path / os.fsdecode(b"model-\xff")
    link.symlink_to(talking_model)
    error = assert_one_sentence(shell('"$@"', "generate", str(link), "hi", "-n", "5"))
    assert r"model-\xff is no path in UTF-8: give the directory another name" in error


def test_a_terminal_that_has_no_unicode(talking_model):
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = ["generate", str(talking_model), "hi", "-n", "60", "--temperature", "2"]
    done = shell('"$@"', *command, **environment)
    assert done.returncode == 0 and b"60 tokens" in done.stdout, done.stderr
    assert b"\\u" in done.stdout  # random bytes are no UTF-8: replacement characters, escaped


@pytest.mark.parametrize("command", [["-h"], ["--help"], ["generate", "-h"], ["compile", "-h"]])
def test_help(command):
    done = shell('"$@"', *command)
    assert done.returncode == 0 and done.stderr == b"" and b"Usage: kvctl" in done.stdout


def test_version():
    import kvctl

    done = shell('"$@"', "--version")
    assert (done.returncode, done.stdout.decode()) == (0, f"kvctl {kvctl.__version__}\n")


@pytest.mark.parametrize("command", [["generate", "-n", "100000"], ["bench"]])
def test_ctrl_c(talking_model, command):
    name, *options = command
    process = subprocess.Popen(
        [KVCTL, name, talking_model, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        time.sleep(1.0)  # generate waits for its prompt; bench measures
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert b"Traceback" not in err and b"Exception ignored" not in err, err
    # bench may have ended before the signal came, or be about to: Python itself answers then.
    late = (0, -signal.SIGINT) if name == "bench" else ()
    assert process.returncode in (130, *late), (out, err)


def test_bench_refuses_a_json_file_before_it_measures(talking_model, tmp_path):
    options = ["--rows", "1", "-n", "3", "--repeat", "1"]
    done = shell(
        '"$@"', "bench", str(talking_model), "--json", str(tmp_path / "no/where"), *options
    )
    assert "there is no directory for --json" in assert_one_sentence(done)
    assert done.stdout == b""


@needs_full
def test_bench_on_a_full_disk(talking_model):
    options = ["--rows", "1", "-n", "3", "--repeat", "1"]
    done = shell('"$@"', "bench", str(talking_model), "--json", "/dev/full", *options)
    assert "No space left on device" in assert_one_sentence(done)
    done = shell('"$@" >/dev/full', "bench", str(talking_model), *options)
    assert "No space left on device" in assert_one_sentence(done)


def test_bench_keeps_prompts_of_one_name_apart(talking_model, tmp_path):
    files = [tmp_path / folder / "prompt.txt" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("hello")
    named = [part for file in files for part in ("-f", str(file))]
    options = ["--rows", "1", "-n", "3", "--repeat", "1", "--json", "-"]
    done = shell('"$@"', "bench", str(talking_model), *named, *options)
    assert done.returncode == 0, done.stderr
    assert all(str(file) in done.stdout.decode() for file in files)


# A file size limit stands for a full disk: the write fails in the middle.
LIMITED = """
import resource, sys
import numpy as np
import kvctl
from kvctl.verification import Trace

resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    if sys.argv[1] == "trace":
        trace = Trace()
        tree = kvctl.TokenTree.chain([1, 2])
        rows = np.random.default_rng(0).random((2, 300)).astype(np.float32)
        rows /= rows.sum(-1, keepdims=True)
        trace.add(tree, target_probs=rows, drawn="deterministic")
        trace.save(sys.argv[2])
    else:
        cache = kvctl.PagedKVCache.create(
            num_layers=1, num_qo_heads=2, num_kv_heads=1, head_dim=64, max_total_tokens=64
        )
        cache.add_sequence(0)
        cache.save_sequence(0, sys.argv[2])
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["trace", "sequence"])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, what):
    file = tmp_path / "file"
    file.write_text("as it was")
    command = [sys.executable, "-c", LIMITED, what, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert file.read_text() == "as it was" and list(tmp_path.iterdir()) == [file]
