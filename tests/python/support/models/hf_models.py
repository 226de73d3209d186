"""Tiny seeded models of transformers, one for each family, and their eager recomputation."""

from __future__ import annotations

import copy

import numpy as np
import torch
import transformers

VOCABULARY = 256
WINDOW = 12
CONTEXT = 512
#: How far float32 logits may be from eager ones.
BOUND = 2e-5

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}

#: The class of the config, and what differs from the common numbers.
FAMILIES = {
    "llama": ("Llama", {}),
    "llama3_scaling": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama_yarn": ("Llama", {"rope_parameters": _YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "olmo2": ("Olmo2", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": WINDOW}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0,
                            "attention_multiplier": 0.1, "residual_multiplier": 0.5}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _SLIDING,
                          "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _SLIDING,
                              "query_pre_attn_scalar": 24}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("GPTNeoX", {}),
    "mixtral": ("Mixtral", _MOE),
    "gpt_oss": ("GptOss", {**_MOE, "head_dim": 16, "sliding_window": WINDOW,
                           "layer_types": _SLIDING}),
    "cohere2": ("Cohere2", {"sliding_window": WINDOW, "layer_types": _SLIDING}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW}),
    "stablelm": ("StableLm", {}),
    "phi": ("Phi", {}),
    "glm": ("Glm", {"head_dim": 16}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "num_experts_per_tok": 2,
                               "moe_intermediate_size": 32,
                               "shared_expert_intermediate_size": 32}),
    "olmo3": ("Olmo3", {"sliding_window": WINDOW}),
    "opt": ("OPT", {"word_embed_proj_dim": 64}),
    "vaultgemma": ("VaultGemma", {"head_dim": 16, "sliding_window": WINDOW}),
}  # fmt: skip


def make_model(family, *, seed=0, dtype=torch.float32, **changes):
    """Return a model with random weights whose attention is not close to uniform."""
    kind, own = FAMILIES[family]
    numbers = {**_COMMON, **own, **changes}
    if kind == "GPT2":
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            del numbers[name]
        del numbers["max_position_embeddings"], numbers["num_key_value_heads"]
        del numbers["intermediate_size"]
    config = getattr(transformers, f"{kind}Config")(**numbers)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
            elif parameter.dim() >= 2:
                parameter.mul_(3.0)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model.to(dtype).eval()


def eager(model):
    """Return a copy that attends as transformers' eager code does."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def logits_of(model, text):
    """Logits (n, vocabulary) of a whole text at once, float32."""
    with torch.no_grad():
        ids = torch.tensor([text], device=model.device)
        return model(input_ids=ids, use_cache=False).logits[0].float().cpu().numpy()


def random_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()
