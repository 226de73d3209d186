"""Modules for multi-token prediction are read from their model's own files, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

import head_files
import kvctl
from family_files import Family
from family_weights import seeded_weights
from head_checkpoint import Target, write_head
from huggingface_files import write_shards
from kvctl.draft import HeadDrafter
from kvctl.heads import load
from kvctl.heads.checkpoint import HeadCheckpoint
from kvctl.heads.compile import compile_head
from kvctl.models import compile_model, open_checkpoint

STEM, DEEPSEEK = head_files.MTP_MIMO, head_files.MTP_DEEPSEEK


def module(config):
    """Return a module's tensors for a model: seeded ones."""
    width, inside = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * width // config["num_attention_heads"]
    shapes = {
        "input_proj.weight": (width, 2 * width),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.q_proj.bias": (width,),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inside, width),
        "mlp.up_proj.weight": (inside, width),
        "mlp.down_proj.weight": (width, inside),
    }
    for part in "kv":
        shapes |= {f"self_attn.{part}_proj.weight": (keys, width)}
        shapes |= {f"self_attn.{part}_proj.bias": (keys,)}
    for norm in ("input", "post_attention", "token_", "hidden_", "final_"):
        shapes[f"{norm}{'' if norm.endswith('_') else '_'}layernorm.weight"] = (width,)
    return seeded_weights({f"{STEM}.{name}": shape for name, shape in shapes.items()}, seed=3)


@pytest.fixture(scope="module")
def mimo(tmp_path_factory):
    """A model as MiMo's files are: a Qwen2 and its module."""
    directory, family = tmp_path_factory.mktemp("mimo"), Family("qwen2")
    config = {
        **family.config,
        "model_type": "mimo",
        "architectures": ["MiMoForCausalLM"],
        "num_nextn_predict_layers": 1,
        "attention_bias": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    weights = {**family.weights(), **module(config)}
    write_shards(directory, {"model.safetensors": weights}, index=False)
    return directory


def test_a_model_and_its_module(mimo, tmp_path):
    layers = open_checkpoint(mimo).config.num_hidden_layers
    model = compile_model(mimo, tmp_path / "model", hidden_layers=[layers - 1])
    runner, family = kvctl.ModelRunner.load(model), Family("qwen2")
    head = load(compile_head(mimo, tmp_path / "head", target_model=mimo))
    head.check_target(runner)
    assert head.hidden_layers == (layers - 1,) and head.vocabulary is None
    prompt = np.ravel(family.tokens).tolist()[:9]
    expected = kvctl.generate(runner, prompt, max_new_tokens=20).tokens
    drafter = HeadDrafter(head, branching=2, beam=2, length=3, nodes=5)
    text = kvctl.generate(runner, prompt, max_new_tokens=20, drafter=drafter)
    assert text.tokens == expected and text.statistics.speculative_rounds > 0
    assert 0 not in head.cache


NORM = np.ones(16, np.float32)
REFUSED = [
    ("mtp_deepseek", {f"{DEEPSEEK}.mlp.experts.0.up_proj.weight": NORM}, "not with one with exp"),
    ("mtp_deepseek", {f"{DEEPSEEK}.self_attn.kv_a_proj_with_mqa.weight": NORM}, "latent attention"),
    ("mtp_deepseek", {f"{DEEPSEEK}.self_attn.q_norm.weight": NORM}, "that normalises q and k"),
    ("mtp_mimo", {f"{STEM}.self_attn.g_proj.weight": NORM}, "with gated attention"),
    ("mtp_mimo", {"mtp.fc.weight": NORM}, "prediction modules of Qwen3-Next"),
    ("mtp_mimo", {f"{STEM}.extra": NORM}, "holds 1 tensor .'model.mtp_layers.0.extra'. that"),
    ("mtp_mimo", {f"{STEM}.final_layernorm.weight": None}, "lacks 1 tensor .*final_layernorm"),
]


@pytest.mark.parametrize(("case", "tensors", "message"), REFUSED)
def test_what_is_not_built_is_refused(tmp_path, target, case, tensors, message):
    head = write_head(tmp_path / "head", case, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        HeadCheckpoint.open(head, target)


def test_a_target_of_other_layers_is_refused(tmp_path):
    head = write_head(tmp_path / "head", "mtp_mimo")
    with pytest.raises(ValueError, match="and the target's have qk_norm 'head'"):
        HeadCheckpoint.open(head, Target(qk_norm="head"))
