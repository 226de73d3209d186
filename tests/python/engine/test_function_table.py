import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import tvm_ffi

import kvctl
from relax_library import HIDDEN, VOCABULARY, compile_caller, compile_library, metadata_says


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_library(tmp_path_factory.mktemp("library") / "lib.so")


@pytest.fixture(autouse=True)
def metadata():
    metadata_says({"model_type": "tiny", "params": []})


def test_functions_by_name(library):
    table = kvctl.FunctionTable(library)
    assert set(table) == {"embed", "batch_prefill", "_metadata"}
    assert len(table) == 3
    assert "embed" in table
    assert "batch_verify" not in table
    assert 7 not in table
    assert table.get("batch_verify") is None
    assert table.path == str(library)


def test_called_function_computes(library):
    table = kvctl.FunctionTable(library)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((VOCABULARY, HIDDEN), np.float32) for _ in range(2)]
    params = [tvm_ffi.from_dlpack(w) for w in weights]
    ids = np.array([3, 0, 12], np.int32)
    x = table["embed"](tvm_ffi.from_dlpack(ids), params)
    np.testing.assert_array_equal(np.from_dlpack(x), weights[0][ids])
    batch = np.ascontiguousarray(np.from_dlpack(x)[None])
    logits = table["batch_prefill"](
        tvm_ffi.from_dlpack(batch), tvm_ffi.from_dlpack(np.array([2], np.int32)), params
    )
    np.testing.assert_allclose(
        np.from_dlpack(logits), (weights[0][[12]] @ weights[1].T)[None], rtol=1e-5
    )


def test_functions_of_imported_modules_are_found(library):
    table = kvctl.FunctionTable(library)
    assert "take" in table  # a kernel: it is in the module that the virtual machine imports
    assert "take" not in set(table)


def test_functions_outlive_the_table(library):
    metadata = kvctl.FunctionTable(library)["_metadata"]
    assert '"tiny"' in str(metadata())


def test_absent_function_says_what_there_is(library):
    table = kvctl.FunctionTable(library)
    with pytest.raises(KeyError, match=r"does not export 'batch_verify'.*batch_prefill, embed"):
        table["batch_verify"]


def test_metadata(library, tmp_path):
    assert kvctl.FunctionTable(library).metadata == {"model_type": "tiny", "params": []}
    metadata_says('{"model_type": ')
    with pytest.raises(ValueError, match=r"_metadata of .*lib\.so is not valid JSON"):
        kvctl.FunctionTable(library)
    metadata_says("[1]")
    with pytest.raises(ValueError, match=r"_metadata of .*lib\.so must be a JSON object"):
        kvctl.FunctionTable(library)
    silent = compile_library(tmp_path / "silent.so", metadata=False)
    assert kvctl.FunctionTable(silent).metadata == {}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model library .*absent\.so"):
        kvctl.FunctionTable(tmp_path / "absent.so")


def test_file_that_is_no_library(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"not a library")
    with pytest.raises(ValueError, match=r"lib\.so \(13 bytes\) is not a shared library"):
        kvctl.FunctionTable(path)


@pytest.mark.parametrize("kept", [100, 20000, -1])
def test_truncated_library(library, tmp_path, kept):
    whole = library.read_bytes()
    path = tmp_path / "lib.so"
    path.write_bytes(whole[:kept])
    match = rf"lib\.so is truncated: it has {len(whole[:kept])} bytes, its headers need"
    with pytest.raises(ValueError, match=match):
        kvctl.FunctionTable(path)


def test_library_without_a_virtual_machine(tmp_path):
    compiler = shutil.which("g++") or shutil.which("cc")
    assert compiler is not None
    path = tmp_path / "plain.so"
    source = tmp_path / "plain.c"
    source.write_text("int forty_two(void) { return 42; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    assert ctypes.CDLL(str(path))
    with pytest.raises(ValueError, match="not one that Relax compiled"):
        kvctl.FunctionTable(path)


def test_library_that_calls_an_unknown_function(tmp_path):
    path = compile_caller(tmp_path / "lib.so", "somebody.elses.function")
    with pytest.raises(RuntimeError, match=r"does not start: .*somebody\.elses\.function"):
        kvctl.FunctionTable(path)
