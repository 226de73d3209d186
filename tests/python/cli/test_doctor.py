import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kvctl.cli import doctor
from kvctl.cli.doctor import machine, software
from kvctl.cli.doctor.check import Check, Status, fail, note, ok


def run(*arguments, **environment):
    command = [sys.executable, "-c", "from kvctl_launcher import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def line_of(output, name):
    return next(line for line in output.splitlines() if line[6:].startswith(name))


def test_a_good_installation():
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kvctl works here" in done.stdout
    for name in ("TVM build", "tvm-ffi build", "import kvctl", "threads"):
        assert line_of(done.stdout, name).startswith("ok")
    assert "0.27" in line_of(done.stdout, "TVM ")
    assert "OpenMP runs" in line_of(done.stdout, "threads")
    kernels = line_of(done.stdout, "linear layers")
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        assert dtype in kernels
    assert "from 1 row on" in kernels


@pytest.fixture
def other_tvm_ffi(tmp_path):
    """A tvm_ffi that is another build, in front of the real one."""
    package = tmp_path / "tvm_ffi"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    # Any shared library with a build-id of its own.
    (package / "lib" / "libtvm_ffi.so").write_bytes(Path(sys.executable).resolve().read_bytes())
    return str(tmp_path)


def test_explains_why_kvctl_cannot_be_imported(other_tvm_ffi):
    done = run("doctor", PYTHONPATH=other_tvm_ffi)
    assert done.returncode == 1
    assert line_of(done.stdout, "TVM build").startswith("ok")
    assert line_of(done.stdout, "tvm-ffi build").startswith("fail")
    assert "pip install apache-tvm-ffi==" in done.stdout
    assert "pip install apache-tvm==" not in done.stdout
    assert line_of(done.stdout, "import kvctl").startswith("fail")
    assert "was compiled against tvm-ffi" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_other_commands_point_to_the_doctor(other_tvm_ffi):
    done = run("bench", PYTHONPATH=other_tvm_ffi)
    assert done.returncode == 1
    assert "kvctl doctor" in done.stderr and "was compiled against tvm-ffi" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_where_its_packages_are_missing(tmp_path):
    for name in ("typer", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')")
    done = run("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kvctl works here" in done.stdout
    done = run("generate", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "no typer" in done.stderr and "kvctl doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_says_that_onednn_must_be_asked_for(monkeypatch):
    monkeypatch.setattr(software.Path, "exists", lambda path: True)
    monkeypatch.delenv("KVCTL_LINEAR", raising=False)
    assert "for KVCTL_LINEAR=onednn" in software._onednn().found
    monkeypatch.setenv("KVCTL_LINEAR", "onednn")
    assert "for KVCTL_LINEAR" not in software._onednn().found


def test_missing_tvm_says_what_to_install():
    assert software._tvm(None).status is Status.FAIL
    assert "pip install apache-tvm==" in software._tvm(None).advice


def test_missing_library_in_tvm(tmp_path):
    check = software._tvm(tmp_path)
    assert check.status is Status.FAIL and "lacks lib/libtvm_runtime.so" in check.found


def test_an_import_that_crashes_is_survived(monkeypatch):
    monkeypatch.setattr(software, "_PROBE", "import os; os.abort()")
    assert software.probe() == {"error": "the import was killed by signal 6"}


def test_pinned_threads_are_seen():
    allowed = len(os.sched_getaffinity(0))
    check = machine._threads({"cpus": allowed - 1, "openmp_threads": allowed})
    assert check.status is Status.WARN and "pinned" in check.found
    assert machine._threads({"cpus": allowed, "openmp_threads": allowed}).status is Status.OK
    assert machine._threads({"openmp_threads": allowed + 1}).status is Status.WARN


def test_a_busy_machine_is_seen(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(machine, "sleep", lambda seconds: None)
    monkeypatch.setattr(machine.Path, "read_text", lambda path: "9.0 9.0 9.0 4/500 77")
    for cpus, status in ((3, Status.WARN), (4, Status.OK)):
        monkeypatch.setattr(machine.os, "cpu_count", lambda cpus=cpus: cpus)
        assert machine._load().status is status
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 1)
    assert machine._load().status is Status.OK


def test_thread_settings_that_disturb_are_seen(monkeypatch):
    monkeypatch.setenv("TVM_BIND_THREADS", "1")
    assert machine._tvm_threads().status is Status.WARN


def test_narrowed_instructions_are_seen(monkeypatch):
    monkeypatch.setenv("KVCTL_ISA", "baseline")
    assert machine._instructions({}).status is Status.WARN


def test_report_has_advice_below_its_line():
    console = Console(record=True, width=200, file=io.StringIO(), highlight=False)
    doctor.report([ok("a", "fine"), fail("b [x]", "gone", "fetch it"), note("c", "so")], console)
    text = console.export_text()
    assert "ok    a      fine\n" in text
    assert "fail  b [x]  gone\n             -> fetch it\n" in text
    assert "1 of 3 checks failed" in text


def test_report_counts_only_failures():
    console = Console(record=True, width=200, file=io.StringIO())
    doctor.report([Check("a", Status.WARN, "slow", "hurry")], console)
    assert "kvctl works here" in console.export_text()
