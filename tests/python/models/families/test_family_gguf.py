"""The same models from GGUF: every weight, and the same configuration, as from safetensors."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf

from family_files import CASES, Family
from family_gguf import write_family_gguf
from kvctl.models import open_checkpoint
from kvctl.models.checkpoints.weight_names import weight_names

# llama.cpp has no keys for windows of these, and one activation for GPT-NeoX.
WITHOUT = {"mistral_window", "qwen2_window", "gpt_neox_sequential"}
# What GGUF does not say, or says otherwise.
OTHERWISE = {"model_type", "rope_scaling"}


@pytest.mark.parametrize("case", [case for case in CASES if case not in WITHOUT])
def test_gguf_is_the_same_model(tmp_path, case):
    family = Family(case)
    wanted = open_checkpoint(family.write(tmp_path / "source"))
    found = open_checkpoint(write_family_gguf(tmp_path / "m.gguf", family))
    theirs, ours = asdict(wanted.config), asdict(found.config)
    if case.startswith("gemma"):  # the scalar of 27B models alone is known to llama.cpp
        assert ours.pop("attention_scale") == 24**-0.5
        assert theirs.pop("attention_scale") == 20**-0.5
    for field, value in theirs.items():
        same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert field in OTHERWISE or ours[field] == same, field
    for rotation in filter(None, {wanted.config.rotation(layer) for layer in range(2)}):
        found_table, wanted_table = (c.config.frequencies(rotation) for c in (found, wanted))
        np.testing.assert_allclose(found_table[0], wanted_table[0], rtol=1e-6)
        assert found_table[1] == pytest.approx(wanted_table[1], rel=1e-6)
    for name in weight_names(wanted.config):
        assert found.shape(name) == wanted.shape(name), name
        np.testing.assert_array_equal(found.tensor(name), wanted.tensor(name), err_msg=name)


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "phi3_window", "smollm3"])
def test_layers_without_number(tmp_path, case, monkeypatch):
    """A count beyond reason is refused before anything of that length is made."""
    monkeypatch.setattr(gguf.GGUFWriter, "add_block_count", lambda self, n: None)
    add = gguf.GGUFWriter.add_head_count

    def counted(self, heads):
        add(self, heads)
        self.add_uint32(f"{self.arch}.block_count", (1 << 32) - 1)

    monkeypatch.setattr(gguf.GGUFWriter, "add_head_count", counted)
    path = write_family_gguf(tmp_path / "m.gguf", Family(case))
    with pytest.raises(ValueError, match=r"m\.gguf: num_hidden_layers must be an integer from 1"):
        open_checkpoint(path)
