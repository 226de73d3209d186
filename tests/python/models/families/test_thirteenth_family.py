"""The steps of CONTRIBUTING for another family: a file of data, registered, compiled, run."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from family_files import Family
from huggingface_files import write_shards
from kvctl.models import compile_model, open_checkpoint
from kvctl.models.architectures.architecture import Architecture, Layout
from kvctl.models.architectures.registry import ARCHITECTURES
from kvctl.models.architectures.source import Rows, Source

# A family that fuses q, k and v, names its layers otherwise, and has Qwen2's biases.
THIRTEENTH = Architecture(
    model_type="thirteenth",
    class_name="ThirteenthForCausalLM",
    huggingface=Layout(
        layer="decoder.blocks.{}.",
        parts={
            "model.embed_tokens": "decoder.words",
            "model.norm": "decoder.last_norm",
            **{f"self_attn.{part}_proj": Source("attn.qkv", Rows(part)) for part in "qkv"},
            "self_attn.o_proj": "attn.out",
        },
    ),
    fields={"qkv_bias": True},
    read_huggingface=lambda config: {**config.rope(), "attention_scale": config.number("scale")},
    uses=("scale",),
)


def renamed(weights):
    """Return Qwen2's weights under the names of the new family."""
    found = {}
    for name, array in weights.items():
        if name.startswith("model.layers."):
            index, _, part = name.removeprefix("model.layers.").partition(".")
            part = part.replace("self_attn.o_proj", "attn.out")
            if "_proj" not in part or part.startswith(("attn.out", "mlp.")):
                found[f"decoder.blocks.{index}.{part}"] = array
        else:
            name = name.replace("model.embed_tokens", "decoder.words")
            found[name.replace("model.norm", "decoder.last_norm")] = array
    for index in range(2):
        for suffix in ("weight", "bias"):
            parts = [weights[f"model.layers.{index}.self_attn.{p}_proj.{suffix}"] for p in "qkv"]
            found[f"decoder.blocks.{index}.attn.qkv.{suffix}"] = np.concatenate(parts)
    return found


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "thirteenth", THIRTEENTH)
    family = Family("qwen2")
    changes = {"model_type": "thirteenth", "architectures": ["ThirteenthForCausalLM"]}
    family.write(tmp_path / "source", **changes, scale=16**-0.5, layer_types=None)
    write_shards(tmp_path / "source", {"model.safetensors": renamed(family.weights())}, index=False)
    return family, tmp_path / "source"


def test_it_is_the_model_that_it_describes(source, tmp_path):
    family, directory = source
    runner = kvctl.ModelRunner.load(compile_model(directory, tmp_path / "compiled"))
    assert runner.metadata["model_type"] == "thirteenth"
    runner.cache.add_sequence(0)
    found = np.from_dlpack(runner.forward([0], [family.tokens]))
    assert np.abs(found - family.logits).max() < 1e-4 * np.abs(family.logits).max()


def test_its_files_are_read_as_strictly(source):
    family, directory = source
    family.write(directory, model_type="thirteenth", scale=None, architectures=None)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        open_checkpoint(directory)
    family.write(directory, model_type="thirteenth", scale=0.25, architectures=None)
    with pytest.raises(ValueError, match=r"lacks .*decoder\.words\.weight"):
        open_checkpoint(directory)
