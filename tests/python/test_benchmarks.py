"""The benchmarks run. What they measure is not asserted: only that they print and write it."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = ROOT / "benchmarks" / "python"


@pytest.mark.parametrize(
    ("driver", "arguments"),
    [
        ("attention", ["--parts", "observer", "--rounds", "1", "--threads", "1"]),
        ("verify", ["--quick", "--vocab", "512", "--draft", "2"]),
        ("linear", "--types int8 --rows 1 2 --shape 64 64 --megabytes 1 --repeat 1".split()),
        ("dtypes", ["{smollm2}", "{smollm2}"]),
        ("drafting", ["--tokens", "20000", "--repeat", "1"]),
        ("model", ["{smollm2}", "--repeat", "1", "--rows", "1", "2"]),
        ("generate", ["{smollm2}", "--repeat", "1", "--tokens", "8", "--prompts", "open"]),
        ("rules", ["{smollm2}", "--rounds", "1", "--prompts", "1"]),
        ("loop", ["{smollm2}", *"--repeat 1 --tokens 8 --prompts open --copies 4".split()]),
    ],
)
def test_driver_prints_a_table_and_writes_json(driver, arguments, tmp_path, smollm2):
    result = tmp_path / "result.json"
    command = [sys.executable, DRIVERS / f"bench_{driver}.py", "--json", result]
    done = subprocess.run(
        [*command, *(argument.format(smollm2=smollm2) for argument in arguments)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2
    assert json.loads(result.read_text())


def test_perplexity_of_even_logits_is_the_vocabulary(monkeypatch):
    np = pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(str(DRIVERS))
    import perplexity

    tokens = [3, 1, 4, 1] * 128
    even = perplexity.log_probability(np.full((512, 8), 2.5, np.float32), tokens)
    assert perplexity.perplexity([even, even]) == pytest.approx(8)
    sure = np.full((512, 8), -1e4, np.float32)
    sure[np.arange(511), tokens[1:]] = 0
    assert perplexity.perplexity([perplexity.log_probability(sure, tokens)]) == pytest.approx(1)


def test_logits_of_a_type_are_compared_with_the_reference(monkeypatch):
    np = pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(str(DRIVERS))
    from bench_dtypes import difference

    reference = np.array([[2, 1, 0], [0, 1, 2]], np.float32)
    same = difference(reference, reference)
    assert (same["largest"], same["rms"], same["same"]) == (0, 0, 1)
    assert same["divergence"] == pytest.approx(0)
    assert same["accepted"] == pytest.approx(1)
    # Nothing depends on what is added to all logits of a row but the two errors.
    moved = difference(reference, reference + 3)
    assert (moved["largest"], moved["rms"]) == (3, 3)
    assert moved["accepted"] == pytest.approx(1)
    swapped = difference(reference, reference[::-1])
    assert (swapped["largest"], swapped["same"]) == (2, 0)
    p = np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum()
    assert swapped["accepted"] == pytest.approx(np.minimum(p, p[::-1]).sum())
    assert swapped["divergence"] == pytest.approx((p * np.log(p / p[::-1])).sum())


@pytest.mark.parametrize("rows", [[], ["--against", "no-such-commit"], ["--against=--all"]])
def test_an_unknown_commit_is_refused(rows):
    command = [sys.executable, DRIVERS / "suite" / "bench_against.py", *rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    wanted = f"there is no commit {rows[-1].removeprefix('--against=')!r} here" if rows else "give"
    assert wanted in done.stderr


def suite(monkeypatch, name):
    monkeypatch.syspath_prepend(str(DRIVERS / "suite"))
    return import_module(name)


def test_the_tables_of_the_page_are_those_of_the_stored_results(monkeypatch):
    write_tables = suite(monkeypatch, "write_tables")
    page = write_tables.PAGE.read_text()
    assert page.count("<!-- table ") == page.count("<!-- end -->") > 5
    assert write_tables.written(page) == page
    with pytest.raises(ValueError, match="no table 'nothing': known are step_cost"):
        write_tables.written("<!-- table nothing -->\n<!-- end -->")


def test_every_stored_result_of_a_machine_says_what_it_was_measured_on():
    for path in (ROOT / "benchmarks" / "results").glob("*_*/*.json"):
        measured = json.loads(path.read_text())["measured"]
        assert {"cpu", "cpus", "isa", "bytes_per_second", "day"} <= measured.keys(), path
        assert path.parent.name.endswith(measured["isa"]), path


def test_a_machine_has_a_folder_of_its_name(monkeypatch):
    folder_name = suite(monkeypatch, "bench_all").folder_name
    assert folder_name("Intel(R) Xeon(R) Processor", "avx512") == "intel_xeon_avx512"
    assert folder_name("Intel(R) Core(TM) i7-1185G7 @ 3.00GHz", "avx2") == "intel_core_avx2"
    assert folder_name("AMD EPYC", "avx2") == "amd_epyc_avx2"
    assert folder_name("", "generic") == "generic"


def test_the_most_that_a_machine_ever_read_is_its_bandwidth(monkeypatch, tmp_path):
    best_bandwidth = suite(monkeypatch, "bench_all").best_bandwidth
    for name, read in (("amd_epyc_avx2", 5e9), ("amd_epyc_avx512", 7e9), ("intel_xeon_avx2", 9e9)):
        (tmp_path / name).mkdir()
        result = json.dumps({"measured": {"bytes_per_second": read}})
        (tmp_path / name / "model.json").write_text(result)
    (tmp_path / "amd_epyc_avx2" / "rules.json").write_text("{}")
    assert best_bandwidth(tmp_path / "amd_epyc_avx2", 1e9) == 7e9
    assert best_bandwidth(tmp_path / "amd_epyc_avx2", 8e9) == 8e9
    assert best_bandwidth(tmp_path / "arm_avx2", 2e9) == 2e9


def test_a_stored_result_with_more_parts_stays(monkeypatch):
    lost = suite(monkeypatch, "bench_all").lost
    assert lost({}, {"rows": []}) == []
    assert lost({"sdpa": {}, "shared": {}}, {"shared": {}, "observer": {}}) == ["sdpa"]
    engines = {"engines": {"kvctl": "", "llama.cpp": ""}}
    assert lost(engines, {"engines": {"kvctl": ""}}) == ["llama.cpp"]
    assert lost(engines, engines) == []


def test_all_benchmarks_run_though_one_fails(monkeypatch, tmp_path, capfd):
    bench_all = suite(monkeypatch, "bench_all")
    about = {"cpu": "AMD EPYC", "cpus": 2, "isa": "avx2", "bytes_per_second": 1e9}
    monkeypatch.setattr(bench_all, "describe", lambda: about)
    programs = {
        "step_cost": 'echo "{\\"rows\\": []}" > "$1"',
        "bookkeeping": "exit 3",
        "verification": "sleep 20",
        "mask_lowering": 'echo "{\\"repeat\\": $2}" > "$1"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    arguments = f"bench_all model --programs {tmp_path} --quick --limit 2 --output {tmp_path}/out"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--only", *programs])
    with pytest.raises(SystemExit, match="bookkeeping ended with 3; verification stopped after 2"):
        bench_all.main()
    out = tmp_path / "out" / "amd_epyc_avx2"
    assert sorted(path.name for path in out.iterdir()) == ["mask_lowering.json", "step_cost.json"]
    result = json.loads((out / "mask_lowering.json").read_text())
    assert result["repeat"] == 200
    assert result["measured"].keys() >= {*about, "load", "seconds", "processor_seconds", "quick"}
    assert "4 benchmarks in" in capfd.readouterr().out


def test_unknown_settings_of_llama_cpp_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(DRIVERS))
    from peers.engines import llama_settings

    assert llama_settings("repack,threads=1") == {"repack": "", "threads": "1"}
    assert llama_settings("") == {}
    with pytest.raises(ValueError, match="'fast' is no setting"):
        llama_settings("repack,fast")
