"""config.json of published models, in the forms of before transformers 5."""

from __future__ import annotations

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from kvctl.models import DecoderConfig

COMMON = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"type": "longrope", "long_factor": [2.0] * 24, "short_factor": [1.0] * 24}


def read(model_type, **fields):
    return DecoderConfig.from_huggingface({"model_type": model_type, **COMMON, **fields})


def test_llama_3_2():
    config = read("llama", rope_theta=500000.0, rope_scaling=LLAMA3, head_dim=64)
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("llama3", 32.0)
    assert not config.cache_rotates
    frequencies, factor = config.frequencies("global")
    assert factor == 1.0
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(500000.0 ** (-31 / 32) / 32)


def test_mistral():
    assert read("mistral", sliding_window=4096).layer_windows == (4096,) * 8
    assert read("mistral").layer_windows == (4096,) * 8  # transformers' default
    assert read("mistral", sliding_window=None, head_dim=128).layer_windows == ()


def test_qwen():
    fields = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 21}
    config = read("qwen2", **fields, tie_word_embeddings=True)
    assert (config.qkv_bias, config.output_bias, config.layer_windows) == (True, False, ())
    assert config.cache_rotates
    config = read("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=6)
    assert config.layer_windows == (0,) * 6 + (32, 32)
    config = read("qwen3", attention_bias=False)
    assert (config.qk_norm, config.head_dim, config.qkv_bias) == ("head", 128, False)


def test_qwen_yarn():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    _, factor = read("qwen2", rope_scaling=yarn).frequencies("global")
    assert factor == pytest.approx(1.1386294361)


def test_gemma_2():
    config = read(
        "gemma2",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        cache_implementation="hybrid",
    )
    assert config.layer_windows == (4096, 0) * 4
    assert (config.attention_soft_cap, config.logit_soft_cap) == (50.0, 30.0)
    assert (config.head_dim, config.sm_scale, config.tie_word_embeddings) == (256, 1 / 16, True)
    assert config.embedding_scale == 2048**0.5
    assert read("gemma2", final_logit_softcapping=None).logit_soft_cap is None


def test_gemma_3():
    config = read(
        "gemma3_text",
        rope_theta=1000000,
        rope_local_base_freq=10000,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=512,
        sliding_window_pattern=6,
        attn_logit_softcapping=None,
    )
    assert config.layer_windows == (512,) * 5 + (0,) + (512,) * 2
    assert (config.rotation(0), config.rotation(5)) == ("local", "global")
    assert config.frequencies("local")[0][0] == 1.0
    assert config.frequencies("global")[0][0] == 1 / 8


def test_phi_3():
    config = read("phi3", num_key_value_heads=32, hidden_size=3072, sliding_window=2047)
    assert (config.layer_windows, config.head_dim) == ((2047,) * 8, 96)
    config = read(
        "phi3",
        hidden_size=3072,
        num_attention_heads=24,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=4096,
        rope_scaling={**LONGROPE, "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
    )
    assert (config.head_dim, config.rotated) == (128, 96)
    frequencies, factor = config.frequencies("global")
    assert frequencies[0] == 0.5
    assert factor == pytest.approx(1.1902380714)
    assert config.with_context(4096).frequencies("global")[0][0] == 1.0


def test_others():
    config = read("smollm3", no_rope_layers=[1, 1, 1, 0] * 2, rope_theta=5e6)
    assert (config.no_rope_layers, config.tie_word_embeddings) == ((3, 7), True)
    assert read("smollm3").rope_theta == 2e6
    config = read("granite", attention_multiplier=0.0078125, logits_scaling=8.0)
    assert (config.sm_scale, config.logit_scale, config.residual_scale) == (1 / 128, 1 / 8, 1.0)
    config = read("olmo2", rope_theta=500000)
    assert (config.norm_placement, config.qk_norm) == ("after", "all")


def test_pythia_and_gpt2():
    config = read(
        "gpt_neox",
        num_attention_heads=16,
        num_key_value_heads=None,
        rotary_pct=0.25,
        rotary_emb_base=20000,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
    )
    assert (config.rotated, config.rope_theta, config.num_key_value_heads) == (32, 20000.0, 16)
    gpt2 = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
    config = DecoderConfig.from_huggingface(
        {"model_type": "gpt2", **gpt2, "n_ctx": 1024, "activation_function": "gelu_new"}
    )
    assert (config.head_dim, config.intermediate_size, config.activation) == (64, 3072, "gelu_tanh")
    assert (config.learned_positions, config.rotation(0)) == (1024, None)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' scaling"),
        ("llama", {"rope_scaling": {**LLAMA3, "factor": 0}}, "rope_scaling: RoPE's factor must"),
        ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must"),
        ("llama", {"rope_scaling": {**LLAMA3, "beta_fast": 1}}, "has beta_fast 1"),
        ("phi3", {"rope_scaling": LONGROPE}, "original_max_position_embeddings must be"),
        (
            "phi3",
            {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 4096}},
            "32 frequencies, and 24 factors",
        ),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor must be above 0"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'silu', not 'gelu'"),
        ("qwen2", {"attention_bias": True}, "attention_bias True"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window must be true or false"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a positive integer, not 0"),
        ("mistral", {"layer_types": ["full_attention"]}, "layer_types must name 8 layers"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 8}, "layer_types 'chunked_attention'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "must be an integer from 1, not 0"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers must be 0 or 1 for 8 layers"),
        ("granite", {"logits_scaling": 0}, "logits_scaling must be positive"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias true"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        ("gpt2", {}, "lacks 'n_embd'"),
        ("llama4_text", {}, "kvctl compiles models of type 'llama', 'mistral'"),
    ],
)
def test_what_no_family_is(model_type, fields, message):
    with pytest.raises(ValueError, match=message):
        read(model_type, **fields)
