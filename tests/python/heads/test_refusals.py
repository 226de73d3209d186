"""Heads that do not fit are refused by a sentence, and nothing is compiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from head_checkpoint import Target, write_head
from head_files import TOKENS, VOCAB, head_weights
from kvctl import ModelRunner
from kvctl.heads import load
from kvctl.heads.checkpoint import HeadCheckpoint
from kvctl.heads.compile import compile_head
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model

MAP = (TOKENS - np.arange(40)).astype(np.int64)
NARROW = np.zeros((32, 64), np.float32)
TWICE = MAP.copy()
TWICE[1] = TWICE[0] - 1

PROBLEMS = [
    (
        "eagle",
        {},
        {"fc.bias": np.zeros(3, np.float32)},
        r"'fc.bias' is \(3,\), where",
    ),
    ("eagle", {}, {"fc.weight": np.zeros((64, 64), np.float32)}, r"'fc.weight' is \(64, 64\)"),
    ("eagle", {}, {"layers.0.mlp.up_proj.weight": None}, "lacks 1 tensor .'layers.0.mlp.up_proj"),
    ("eagle", {}, {"extra": np.zeros(3, np.float32)}, "holds 1 tensor .'extra'. that"),
    ("eagle", {}, {"fc.weight": ("I8", bytes(8192), (64, 128))}, "'fc.weight' is I8; kvctl reads"),
    ("eagle", {}, {"fc.weight": np.full((64, 128), np.nan, np.float32)}, "is not finite"),
    ("eagle", {"vocab_size": 95}, {}, "a vocabulary of 95 tokens, and the target has 96"),
    ("eagle", {"hidden_size": 32}, {}, "the head is 32 wide, the target 64"),
    ("eagle", {"num_hidden_layers": 2}, {}, "heads of one layer, not 2"),
    ("eagle", {"model_type": "mamba"}, {}, "with a Llama's layer, not with one of 'mamba'"),
    ("eagle", {"speculators_model_type": "mlp"}, {}, "type eagle and eagle3, not 'mlp'"),
    ("eagle3", {"norm_before_fc": True}, {}, "lacks 1 tensor .'input_norm.weight'"),
    ("eagle3", {"norm_before_fc": 1}, {}, "norm_before_fc must be true or false, not 1"),
    ("eagle3", {"fc_norm": True}, {}, "heads with fc_norm True"),
    ("eagle3", {"norm_before_residual": 1}, {}, "must be true or false, not 1"),
    ("eagle3", {"draft_vocab_size": 41}, {}, "draft_vocab_size is 41, and its map has 40"),
    ("eagle3", {"target_hidden_size": 65}, {}, "of 65 numbers, and the target's have 64"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": [2, 2, 4]}, {}, "reads 3 layers that ascend"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": [2, 4, 9]}, {}, "from 0 to 7, not .1, 3, 8"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": "2"}, {}, "must be numbers, not '2'"),
    ("eagle3", {}, {"d2t": MAP + VOCAB}, "d2t names tokens outside the target's 0 to 95"),
    ("eagle3", {}, {"d2t": TWICE}, "d2t names a token twice"),
    ("eagle3", {}, {"d2t": None}, "it has a t2d and no d2t"),
    ("eagle3", {}, {"d2t": MAP.astype(np.float32)}, "tensor 'd2t' is F32, and must be one of I64"),
    ("eagle3", {}, {"t2d": np.ones(VOCAB, bool)}, "t2d and d2t do not name the same tokens"),
    ("eagle3", {}, {"t2d": np.ones(7, bool)}, r"t2d has the shape \(7,\), and the target 96"),
    (
        "eagle3",
        {},
        {"midlayer.self_attn.q_proj.weight": np.zeros((64, 64), np.float32)},
        "self_attn",
    ),
    ("medusa", {"medusa_num_heads": 3}, {}, "medusa_num_heads is 3, and its tensors have 2"),
    ("medusa", {}, {"1.1.linear.bias": None}, "lacks 1 tensor .'1.1.linear.bias'"),
]


@pytest.mark.parametrize(("case", "fields", "tensors", "message"), PROBLEMS)
def test_a_head_that_does_not_fit(tmp_path, target, case, fields, tensors, message):
    head = write_head(tmp_path / "head", case, fields=fields, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        compile_head(head, tmp_path / "compiled", target_model=target)
    assert not (tmp_path / "compiled").exists()


def test_tensors_of_no_layout(tmp_path, target):
    only = {**dict.fromkeys(head_weights("eagle")), "a": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=r"its tensors .a. are in no layout of heads"):
        HeadCheckpoint.open(write_head(tmp_path, "eagle", tensors=only), target)


@pytest.mark.parametrize("suffix", ["pt", "bin"])
def test_pickled_heads(tmp_path, target, suffix):
    write_head(tmp_path, "medusa")
    (tmp_path / "model.safetensors").rename(tmp_path / f"medusa_lm_head.{suffix}")
    with pytest.raises(ValueError, match=r"is pickled: .* any program.*save_file"):
        HeadCheckpoint.open(tmp_path, target)


def test_missing_files(tmp_path, target):
    with pytest.raises(FileNotFoundError, match=r"there is no directory of a head at"):
        HeadCheckpoint.open(tmp_path / "none", target)
    with pytest.raises(FileNotFoundError, match=r"has no .safetensors files"):
        HeadCheckpoint.open(tmp_path, target)
    head = write_head(tmp_path / "head", "eagle")
    (head / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        HeadCheckpoint.open(head, target)


def test_a_target_that_is_too_shallow_or_another(tmp_path):
    head = write_head(tmp_path / "head", "eagle3")
    with pytest.raises(ValueError, match=r"a target of 5 layers has too few"):
        HeadCheckpoint.open(head, Target(num_hidden_layers=5))
    with pytest.raises(ValueError, match=r"it is 64 wide and has no table of embeddings"):
        HeadCheckpoint.open(head, Target(hidden_size=48))


def test_a_model_is_no_head(tiny_model):
    with pytest.raises(ValueError, match=r"is no head"):
        load(tiny_model)


def test_what_bfloat16_cannot_hold(tmp_path, target):
    """It was saved as infinity once."""
    large = {"fc.weight": np.full((64, 128), 3.4e38, np.float32)}
    head = write_head(tmp_path / "head", "eagle", tensors=large)
    with pytest.raises(ValueError, match=r"head: weight 'fc.weight' is beyond the range of its"):
        compile_head(head, tmp_path / "compiled", target_model=target, dtype="bfloat16")
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize(
    ("where", "dtype"), [("cpu", "int2"), ("cpu", "float16"), ("cuda", "int4")]
)
def test_types_that_heads_have_not(tmp_path, target, where, dtype):
    head = write_head(tmp_path / "head", "eagle")
    with pytest.raises(ValueError, match=f"a head's dtype must be one of float.*, not '{dtype}'"):
        compile_head(head, tmp_path / "out", target_model=target, target=where, dtype=dtype)


DESCRIPTIONS = [
    ({"hidden_layers": None}, "is damaged: TypeError"),
    ({"hidden_layers": "abc"}, "reads 3 layers that ascend from 0 to 7, not .'a'"),
    ({"hidden_layers": [-1, 3, 4]}, "reads 3 layers that ascend"),
    ({"hidden_layers": [1, 3, 8]}, "reads 3 layers that ascend"),
    ({"vocab_size": "x"}, "vocab_size must be an integer of at least 1, not 'x'"),
    ({"vocab_size": 3}, "vocab_size is 3, where 40 fit"),
    ({"token_ids": [1, 2]}, "vocab_size is 40, where 2 fit"),
    ({"token_ids": []}, "vocab_size is 40, where 96 fit"),
    ({"token_ids": [1000] * 40}, "has token 1000; the target's are 0 to 95"),
    ({"token_ids": [1.5] * 40}, "is damaged: TypeError: token_ids must be integers"),
    ({"kind": "medusa"}, "kind is 'medusa', and the library is a head of kind 'eagle3'"),
    ({"kind": ["x"]}, "kind is .'x'."),
    ({"target": 3}, "is damaged: TypeError"),
    ({"target": {"hidden_size": 64}}, "is damaged: KeyError: 'num_hidden_layers'"),
]


@pytest.mark.parametrize(("fields", "message"), DESCRIPTIONS)
def test_a_damaged_description(compiled, tmp_path, fields, message):
    directory = Path(compiled("eagle3")._runner._directory)
    for file in directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((directory / "mlc-chat-config.json").read_text())
    config["kvctl"]["head"] |= fields
    (tmp_path / "mlc-chat-config.json").unlink()
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers"])
def test_a_target_of_the_same_vocabulary_and_another_shape(compiled, tmp_path, name):
    """TVM's check of the shape said so in the middle of a generation."""
    other = {"hidden_size": 32, "num_hidden_layers": 9}[name]
    config = LlamaConfig(**{**vars(Target().config), name: other})
    model = compile_model(RandomCheckpoint(config, seed=3), tmp_path / "m", hidden_layers=[1, 3, 4])
    with pytest.raises(ValueError, match=f"a model with {name} .*, and the model's is {other}"):
        compiled("eagle3").check_target(ModelRunner.load(model))
