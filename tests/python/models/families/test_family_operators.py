"""The same graphs from TVM's own operators, as they are compiled for other devices."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from family_files import Family
from kvctl.models import compile_model, open_checkpoint
from plain_model import compile_plain_model


def check(runner, family):
    runner.cache.add_sequence(0)
    found = np.from_dlpack(runner.forward([0], [family.tokens]))
    assert np.abs(found - family.logits).max() < 1e-4 * np.abs(family.logits).max()


# Between them: biases, LayerNorm, learned positions, both norms of q and k, RoPE on a part of each
# head, multipliers.
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "granite", "olmo2", "phi3_longrope", "qwen3"])
def test_operators_of_tvm(tmp_path, case):
    family = Family(case)
    checkpoint = open_checkpoint(family.write(tmp_path / "source"))
    directory = compile_plain_model(tmp_path / "compiled", checkpoint=checkpoint)
    check(kvctl.ModelRunner.load(directory), family)


@pytest.mark.parametrize("case", ["gemma3", "llama3"])
def test_libraries_that_create_the_cache_of_tvm(tmp_path, case):
    """Windows of layers, and no rotation by the cache, through TVM's own function."""
    family = Family(case)
    source = family.write(tmp_path / "source")
    check(kvctl.ModelRunner.load(compile_model(source, tmp_path / "m", cache="tvm")), family)


def test_soft_caps_need_the_cache_of_kvctl(tmp_path):
    source = Family("gemma2").write(tmp_path / "source")
    with pytest.raises(ValueError, match="soft caps of scores need kvctl's cache"):
        compile_model(source, tmp_path / "m", cache="tvm")
    assert not (tmp_path / "m").exists()
