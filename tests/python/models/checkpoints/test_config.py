from __future__ import annotations

from contextlib import suppress

import pytest

from tiny_model import tiny_config

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from kvctl.models import LlamaConfig

HF = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def test_from_huggingface():
    config = LlamaConfig.from_huggingface(HF)
    assert (config.head_dim, config.num_qkv_heads, config.rope_theta) == (64, 15, 100000.0)
    assert config.tie_word_embeddings and config.context_window_size == 8192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_moe"}, "not 'qwen2_moe'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "'dynamic' scaling"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "original_max_position_embeddings must be"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "not 'gelu'"),
        ({"num_key_value_heads": 2}, "9 query heads"),
        ({"hidden_size": 1 << 40}, "hidden_size must be an integer from 1"),
        ({"vocab_size": "many"}, "vocab_size must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
    ],
)
def test_models_that_kvctl_cannot_build(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_huggingface({**HF, **change})


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.5, float("inf"), "x", [1], {"a": 1}])
def test_values_of_any_type(value):
    """A damaged file gives a model, or an error that names the fault."""
    for key in (*HF, "head_dim", "rope_scaling", "rope_parameters", "attention_bias"):
        with suppress(ValueError):
            LlamaConfig.from_huggingface({**HF, key: value})
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        LlamaConfig.from_huggingface({**HF, "hidden_size": "x"})


def test_a_missing_number():
    with pytest.raises(ValueError, match="lacks 'vocab_size'"):
        LlamaConfig.from_huggingface({k: v for k, v in HF.items() if k != "vocab_size"})


def test_odd_heads():
    with pytest.raises(ValueError, match="head_dim must be even"):
        tiny_config(head_dim=33)
