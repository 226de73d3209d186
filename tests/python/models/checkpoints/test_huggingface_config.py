"""config.json: what changes a model is used or refused, by file and field."""

from __future__ import annotations

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from huggingface_files import CONFIG_JSON, write_config
from kvctl.models import LlamaConfig, open_checkpoint

NAN, INF = float("nan"), float("inf")


def read(**changes):
    config = {key: value for key, value in {**CONFIG_JSON, **changes}.items() if value != "absent"}
    return LlamaConfig.from_huggingface(config, where="x/config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "fp8"}),
        ("compression_config", {}),
        ("attention_bias", True),
        ("attention_bias", "false"),
        ("mlp_bias", True),
        ("partial_rotary_factor", 0.5),
        ("partial_rotary_factor", True),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("attention_chunk_size", 8192),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8.0),
        ("num_local_experts", 8),
        ("use_qk_norm", True),
        ("is_causal", False),
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", "LlamaForCausalLM"),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("tie_word_embeddings", None),
        ("rope_theta", None),
        ("rope_theta", NAN),
        ("rope_theta", INF),
        ("rope_theta", "10000"),
        ("rope_theta", 1),
        ("rope_theta", -5.0),
        ("rope_scaling", "linear"),
        ("rope_scaling", [1]),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("num_attention_heads", NAN),
        ("num_attention_heads", -4),
        ("num_attention_heads", 4.0),
        ("num_attention_heads", True),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 20),
        ("head_dim", 0),
        ("head_dim", 512),
        ("rms_norm_eps", NAN),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", None),
        ("max_position_embeddings", 1 << 40),
        ("max_position_embeddings", "many"),
        ("vocab_size", [256]),
        ("model_type", ["llama"]),
    ],
)
def test_every_refusal_names_the_file_and_the_field(field, value):
    names = {"num_key_value_heads": "key_value_heads|key/value heads", "model_type": "type 'llama'"}
    with pytest.raises(ValueError, match=rf"x/config\.json.*({names.get(field, field)})"):
        read(**{field: value})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"type": "linear"}, "factor must be a finite number, not None"),
        ({"type": "linear", "factor": 0}, "factor must be positive"),
        ({"type": "linear", "factor": NAN}, "factor must be a finite number"),
        ({"type": "linear", "factor": "4"}, "factor must be a finite number"),
        ({"type": "linear", "rope_type": "default"}, "has the type 'linear' and 'default'"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "has beta_fast 32"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "has partial_rotary_factor 0.5"),
        ({"rope_type": None}, "'None' scaling"),
        ({"rope_type": {}}, "'{}' scaling"),
        ({"rope_theta": "x"}, "rope_theta must be a finite number"),
    ],
)
def test_scalings_that_are_none(field, message):
    with pytest.raises(ValueError, match=rf"x/config\.json.*{message}"):
        read(rope_scaling=field)


@pytest.mark.parametrize(
    "neutral",
    [
        {"attention_bias": False, "mlp_bias": None, "partial_rotary_factor": 1.0},
        {"sliding_window": None, "use_sliding_window": False, "layer_types": ["full_attention"]},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_theta": 10000, "rope_parameters": {"rope_theta": 10000.0}},
        {"architectures": None, "hidden_act": "swish", "pretraining_tp": 2, "torch_dtype": "int8"},
        {"architectures": ["LLaMAForCausalLM"], "auto_map": {}, "some_new_field": [1, {}]},
    ],
)
def test_values_that_change_nothing(neutral):
    config = read(**neutral)
    assert config == read()
    assert config.rope_scale == 1.0


def test_two_bases_of_rope_that_differ():
    with pytest.raises(ValueError, match=r"rope_theta is 10000\.0, and 500\.0 in rope_parameters"):
        read(rope_theta=10000.0, rope_parameters={"rope_theta": 500.0})
    with pytest.raises(ValueError, match="contradict each other"):
        read(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"type": "default"})


def test_hidden_size_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="hidden_size 64 cannot be divided by num_attention_heads"):
        read(head_dim="absent", num_attention_heads=6, num_key_value_heads=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json is no JSON"),
        ("[]", "must hold a JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\ud800", "is not UTF-8 text"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is no JSON"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_a_file_that_is_too_large(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match=r"config\.json has \d+ bytes, more than the \d+"):
        open_checkpoint(tmp_path)


def test_a_configuration_on_disk(tmp_path):
    write_config(tmp_path, sliding_window=7)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json: .* sliding_window 7"):
        open_checkpoint(tmp_path)
