"""An extension of 2024, built against kvctl's header and loaded into Python."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import tvm_ffi

from cmake_project import build_project

SOURCE = Path(__file__).parents[1] / "cpp" / "runtime" / "extension_of_2024.cc"
PROJECT = f"""
cmake_minimum_required(VERSION 3.25)
project(extension LANGUAGES CXX)
find_package(kvctl CONFIG REQUIRED)
add_library(extension MODULE "{SOURCE}")
target_link_libraries(extension PRIVATE kvctl::kvctl)
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    project = tmp_path_factory.mktemp("extension")
    (project / "CMakeLists.txt").write_text(PROJECT)
    build_project(project, project)
    return ctypes.CDLL(str(project / "libextension.so"))


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
