"""Workers, which need collectives: a build of kvctl without them skips these tests."""

from __future__ import annotations

import pytest

from kvctl.distributed import ModelRunner, collectives
from tiny_model import compile_tiny_model

SIZES = {"max_sequences": 5, "max_total_tokens": 640}


@pytest.fixture(scope="session")
def gloo():
    """Skip where kvctl was built without Gloo, and say so."""
    if "gloo" not in collectives.available():
        pytest.skip("needs collectives over Gloo: apt install libgloo-dev, then build again")
    collectives.load("gloo")


@pytest.fixture(scope="session")
def sharded_model(tmp_path_factory):
    """The tiny model of the other tests, its weights too, compiled for two workers."""
    directory = tmp_path_factory.mktemp("models") / "tp2"
    return compile_tiny_model(directory, tensor_parallel=2, tensor_parallel_sums="partial")


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory):
    """The same with whole sums."""
    directory = tmp_path_factory.mktemp("models") / "whole2"
    return compile_tiny_model(directory, tensor_parallel=2, tensor_parallel_sums="whole")


@pytest.fixture(scope="session")
def two_workers(gloo, sharded_model):
    """What returns a runner over two processes, which all tests share unless one has ended it."""
    runners = []

    def get():
        if not runners or runners[-1]._session.closed:
            runners.append(ModelRunner.load(sharded_model, workers=2, threads=1, **SIZES))
        return runners[-1]

    yield get
    for runner in runners:
        runner.close()


@pytest.fixture
def runner(two_workers):
    """The same runner with an empty cache."""
    runner = two_workers()
    runner.cache.clear()
    return runner
