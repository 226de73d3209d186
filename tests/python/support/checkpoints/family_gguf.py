"""Writes the tiny models of families as GGUF: names and keys of the gguf package's own tables."""

from __future__ import annotations

import math

import gguf
import numpy as np

from checkpoint_files import neighbouring_pairs

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
}
NEIGHBOURS = ("llama", "smollm3", "granite")


def write_family_gguf(path, family):
    """Write one, its tensors as llama.cpp's converter would lay them out."""
    config, kind = family.config, family.config["model_type"]
    name = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(str(path), name)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    _add_sizes(writer, config, name)
    _add_rope(writer, config, name)
    _add_special(writer, config, name)
    by_name = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(by_name[name], layers)
    for weight, array in family.weights().items():
        target = table.get_name(weight, try_suffixes=(".weight", ".bias"))
        assert target is not None, weight
        writer.add_tensor(target, np.ascontiguousarray(_converted(weight, array, config, name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer, config, name):
    heads = config.get("num_attention_heads", config.get("n_head"))
    hidden = config.get("hidden_size", config.get("n_embd"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    writer.add_context_length(positions)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.get("num_hidden_layers", config.get("n_layer")))
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * hidden)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim") is not None:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if name in ("gptneox", "gpt2"):
        writer.add_layer_norm_eps(config.get("layer_norm_eps", config.get("layer_norm_epsilon")))
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_rope(writer, config, name):
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if not rope:
        return
    writer.add_rope_freq_base(rope["rope_theta"])
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    rotated = int(size * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(rotated)
    original = rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(original)
    elif rope["rope_type"] == "llama3":
        frequencies = rope["rope_theta"] ** (-np.arange(0, rotated, 2) / rotated)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
        divisors = 1 / ((1 - smooth) / rope["factor"] + smooth)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    elif rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original))
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(factor)
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)


def _add_special(writer, config, name):
    if name in ("gemma2", "gemma3", "phi3") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if name == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if name == "gptneox":
        writer.add_parallel_residual(config["use_parallel_residual"])


def _converted(weight, array, config, name):
    if name.startswith("gemma") and weight.endswith("norm.weight"):
        return array + np.float32(1)
    if name in NEIGHBOURS and weight.endswith(("q_proj.weight", "k_proj.weight")):
        query = weight.endswith("q_proj.weight")
        return neighbouring_pairs(
            array, config["num_attention_heads" if query else "num_key_value_heads"]
        )
    if name == "gptneox" and "query_key_value" in weight:
        heads = array.reshape(config["num_attention_heads"], 3, -1, *array.shape[1:])
        return np.concatenate([heads[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
    if name == "gpt2" and array.ndim == 2 and "wte" not in weight and "wpe" not in weight:
        return array.T
    return array
