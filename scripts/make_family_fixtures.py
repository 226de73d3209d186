"""Write the logits that transformers computes for tiny models of every family.

    python scripts/make_family_fixtures.py [CASE ...]

It needs torch and transformers 5 (not kvctl), and writes
``tests/python/models/families/logits/CASE.npz``: the configuration as transformers saves it, the
names and shapes of the weights, which a seed makes again
(``tests/python/support/models/family_weights.py``), tokens, and their logits of one forward.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/python/support/models"))

from family_weights import seeded_weight  # noqa: E402

OUTPUT = ROOT / "tests/python/models/families/logits"
LENGTH, VOCAB = 56, 96

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
}
GEMMA3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
}
NEOX = {
    key: value
    for key, value in {**SIZES, "hidden_size": 96, "intermediate_size": 128}.items()
    if key != "num_key_value_heads"
}
GPT2 = {
    **{"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    **{"bos_token_id": None, "eos_token_id": 2},
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
    ),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral_window": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2_window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "gemma2": (
        "Gemma2",
        {"num_hidden_layers": 4, "head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 20},
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 6,
            "head_dim": 24,
            "sliding_window": 16,
            "query_pre_attn_scalar": 20,
            "rope_parameters": GEMMA3,
        },
    ),
    "phi3_window": ("Phi3", {"sliding_window": 16}),
    "phi3_longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 3.0,
        },
    ),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt_neox_sequential": ("GPTNeoX", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "gpt2": ("GPT2", {}),
}
LM_HEAD = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def make(case: str) -> dict[str, Any]:
    """Return the arrays of one fixture."""
    family, changes = CASES[case]
    sizes = {"GPT2": GPT2, "GPTNeoX": NEOX}.get(family, SIZES)
    config = getattr(transformers, f"{family}Config")(**{**sizes, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, LM_HEAD.get(family, f"{family}ForCausalLM"))(config).eval()
    config.architectures = [type(model).__name__]
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else ()
    )
    shapes = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            weight = seeded_weight(name, shape, norms_from_one=family.startswith("Gemma"))
            parameter.copy_(torch.from_numpy(weight))
            if name not in tied:
                shapes[name] = shape
        tokens = np.random.default_rng(len(case)).integers(0, VOCAB, LENGTH).astype(np.int32)
        logits = model(torch.from_numpy(tokens).long()[None], use_cache=False).logits[0].numpy()
    text = json.dumps(json.loads(config.to_json_string(use_diff=False)), sort_keys=True)
    return {
        "config": np.array(text),
        "shapes": np.array(json.dumps(shapes)),
        "tokens": tokens,
        "logits": logits.astype(np.float32),
        "made_by": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    }


def main() -> None:
    """Write the named fixtures, or all."""
    for case in sys.argv[1:] or CASES:
        arrays = make(case)
        np.savez_compressed(OUTPUT / f"{case}.npz", **arrays)
        spread = float(arrays["logits"].std())
        print(f"{case}: {len(json.loads(str(arrays['shapes'])))} weights, logits of {spread:.2f}")


if __name__ == "__main__":
    main()
