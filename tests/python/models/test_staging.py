"""What a compilation leaves beside its output: nothing, whatever ends it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from checkpoint_files import write_gguf
from gguf_files import byte_level_metadata
from kvctl.models.build import staging
from kvctl.models.build.staging import check_space, staged


def entries(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_a_directory_appears_whole(tmp_path):
    with staged(tmp_path / "a" / "m") as new:
        (new / "file").write_text("new")
        assert not (tmp_path / "a" / "m").exists()
    assert entries(tmp_path / "a") == ["m"]
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "a" / "m") as new:
        (new / "file").write_text("newer")
        raise ValueError("stop")
    assert (tmp_path / "a" / "m" / "file").read_text() == "new"
    assert entries(tmp_path / "a") == ["m"]


def test_parents_that_were_made_are_removed_again(tmp_path):
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "a" / "b" / "m"):
        raise ValueError("stop")
    assert entries(tmp_path) == []


def abandon(output, *, old=False):
    """Leave a scratch directory, as a process that was killed does."""
    scratch = output.with_name(f".{output.name}-abcd_123")
    (scratch / "new").mkdir(parents=True)
    if old:
        output.rename(scratch / "old")
    return scratch


def test_what_a_killed_process_left_is_removed(tmp_path):
    scratch = abandon(tmp_path / "m")
    (tmp_path / ".m-notes").mkdir()
    (tmp_path / ".m-abcd_124").mkdir()
    (tmp_path / ".m-abcd_124" / "mine").write_text("")
    with staged(tmp_path / "m"):
        assert not scratch.exists()
    assert entries(tmp_path) == [".m-abcd_124", ".m-notes", "m"]


def test_a_model_that_was_being_replaced_comes_back(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "file").write_text("old")
    scratch = abandon(tmp_path / "m", old=True)
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "m"):
        raise ValueError("stop")
    assert (tmp_path / "m" / "file").read_text() == "old"
    assert not scratch.exists()


def test_a_process_that_lives_keeps_its_own(tmp_path):
    with staged(tmp_path / "m") as first:
        (first / "file").write_text("1")
        with staged(tmp_path / "m") as second:
            (second / "file").write_text("2")
        assert first.exists()
    assert (tmp_path / "m" / "file").read_text() == "1"
    assert entries(tmp_path) == ["m"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(directory, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    scratch = abandon(tmp_path / "m")
    with staged(tmp_path / "m") as new:
        (new / "file").write_text("1")
    assert (tmp_path / "m" / "file").read_text() == "1"
    assert scratch.exists()  # whether its process lives cannot be told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(tmp_path, number):
    """Whatever ends a compilation, the output is not there, and the next one finds order."""
    path = write_gguf(tmp_path / "m.gguf", tokenizer=byte_level_metadata(256))
    command = [sys.executable, "-c", "from kvctl.cli import main; main()", "compile", path]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    out = tmp_path / "out"
    for _ in range(10):  # it may have ended before the signal arrives
        with subprocess.Popen([*command, "-o", out / "m"], env=environment) as process:
            while not entries(tmp_path / "tmp") and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            code = process.wait(60)
        if code != 0:
            break
        shutil.rmtree(out)
    assert code in (128 + number, -number)
    if number == signal.SIGTERM:
        assert not out.exists() and entries(tmp_path / "tmp") == []
    subprocess.run([*command, "-o", out / "m"], env=environment, check=True, capture_output=True)
    assert entries(out) == ["m"]


def test_room(tmp_path, monkeypatch):
    check_space(tmp_path / "a" / "b", 1 << 20, 1 << 20)
    with pytest.raises(OSError, match="has room for"):
        check_space(tmp_path / "a" / "b", 1 << 60, 1 << 20)
    monkeypatch.setattr(staging.resource, "getrlimit", lambda what: (1 << 20, 1 << 20))
    with pytest.raises(OSError, match=r"may write files of 1048576 bytes \(ulimit -f\)"):
        check_space(tmp_path / "a" / "b", 1 << 20, 1 << 20)


def test_a_limit_of_file_sizes_leaves_nothing(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tokenizer=byte_level_metadata(256))
    command = f"ulimit -f 64; exec {sys.executable} -c 'from kvctl.cli import main; main()' "
    done = subprocess.run(
        ["bash", "-c", f"{command} compile {path} -o {tmp_path}/out/m"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "ulimit -f" in done.stderr, done.stderr
    assert entries(tmp_path) == ["m.gguf"]
