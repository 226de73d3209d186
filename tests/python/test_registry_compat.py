"""Extensions of 2024, built against kvctl's headers and loaded into Python."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import tvm_ffi

from cmake_project import build_project

SOURCES = Path(__file__).parents[1] / "cpp" / "runtime"
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(extension LANGUAGES CXX)
find_package(kvctl CONFIG REQUIRED)
add_library(extension MODULE {sources})
target_link_libraries(extension PRIVATE kvctl::kvctl)
"""


def build(project, *sources):
    listed = " ".join(f'"{source}"' for source in sources)
    (project / "CMakeLists.txt").write_text(PROJECT.format(sources=listed))
    build_project(project, project)
    return project / "libextension.so"


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    sources = [SOURCES / f"{name}_of_2024.cc" for name in ("chat", "extension", "model")]
    library = build(tmp_path_factory.mktemp("extension"), *sources)
    ctypes.CDLL(str(library))
    return library


def call(name, *arguments):
    return tvm_ffi.get_global_func(f"old_extension.{name}")(*arguments)


def test_functions_are_registered_and_called(extension):
    assert str(call("greet", "you")) == "hello you"
    assert str(call("describe", "a", 3, 0.5, True)) == "a:3:greedy:5"
    assert call("call_twice", lambda x: x * x, 3) == 81


def test_a_module_keeps_its_state(extension):
    log = call("create", 4)
    assert log["append"](5, 6, 7) == 3
    assert log["popn"](1) == 2
    assert list(log["tokens"]()) == [5, 6]


def test_errors_arrive_with_their_kind(extension):
    with pytest.raises(ValueError, match="4294967303 does not fit"):
        call("create", 2**32 + 7)
    with pytest.raises(TypeError, match="expected 1 arguments, got 0"):
        call("greet")
    with pytest.raises(IndexError, match="argument 1 of a call with 1"):
        call("describe", "a")


def test_a_chat_module_keeps_its_conversation_in_the_cache(extension):
    chat = tvm_ffi.get_global_func("old_chat.create")(1, 0)
    chat["reload"](tvm_ffi.get_global_func("old_model.load")())
    assert len(chat["generate"](tvm_ffi.Shape([1, 2, 3]), 4)) == 4
    assert chat["popn"](5) == 2
    with pytest.raises(RuntimeError, match="cannot take back -1 tokens"):
        chat["popn"](-1)


def test_exports_are_found_in_the_library(extension):
    module = tvm_ffi.load_module(extension)
    assert module["old_model_vocab_size"](4) == 10
    assert module["old_model_count"]("a", None) == 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("int64_t n = args.values[0].v_int64; *rv = n;", "read args"),
        ("TVMValue v; v.v_float64 = 0.5;", "fill arguments with TVMArgsSetter"),
        (
            "TVMValue v; int c; TVMArgsSetter(&v, &c)(0, String(args[0].operator String()));",
            "give it a name first",
        ),
    ],
)
def test_what_has_no_equivalent_says_what_to_write(tmp_path, body, sentence):
    source = tmp_path / "raw.cc"
    source.write_text(f"""#include "kvctl/registry_compat.h"
using namespace tvm::runtime;
TVM_REGISTER_GLOBAL("raw").set_body([](TVMArgs args, TVMRetValue* rv) {{ {body} }});
""")
    with pytest.raises(AssertionError, match=sentence):
        build(tmp_path, source)
