"""Model directories that the tests of the runner share, and the model that they agree with."""

from __future__ import annotations

import pytest

from llama_reference import ReferenceLlama
from plain_model import compile_plain_model
from tiny_model import tiny_config


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    return compile_plain_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def reference():
    from kvctl.models import RandomCheckpoint

    return ReferenceLlama(RandomCheckpoint(tiny_config()))


@pytest.fixture(params=["tiny_model", "tiny_model_tvm", "plain_model"])
def directory(request):
    """A library on kvctl's cache, one compiled for TVM's, and one that never heard of kvctl."""
    return request.getfixturevalue(request.param)
