"""Tiny heads as they are published, with seeded weights; a program without kvctl makes the same."""

from __future__ import annotations

import numpy as np

from family_weights import seeded_weights

WIDTH, INSIDE, HEADS, KEYS, DIM, VOCAB, LAYERS = 64, 80, 4, 2, 16, 96, 8
EPS, THETA = 1e-5, 10000.0
#: The target's tokens of the reduced vocabulary.
TOKENS = np.sort(np.random.default_rng(4).permutation(VOCAB)[:40])

SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": INSIDE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "head_dim": DIM,
    "num_hidden_layers": 1,
    "vocab_size": VOCAB,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "model_type": "llama",
}
TARGET = {
    "model.embed_tokens.weight": (VOCAB, WIDTH),
    "model.norm.weight": (WIDTH,),
    "lm_head.weight": (VOCAB, WIDTH),
}


def layer(stem, width, norms):
    """Return the shapes of a layer whose attention reads rows of `width`."""
    shapes = {
        "self_attn.q_proj": (HEADS * DIM, width),
        "self_attn.k_proj": (KEYS * DIM, width),
        "self_attn.v_proj": (KEYS * DIM, width),
        "self_attn.o_proj": (WIDTH, HEADS * DIM),
        "mlp.gate_proj": (INSIDE, WIDTH),
        "mlp.up_proj": (INSIDE, WIDTH),
        "mlp.down_proj": (WIDTH, INSIDE),
        **dict.fromkeys(norms, (WIDTH,)),
    }
    return {f"{stem}.{name}.weight": shape for name, shape in shapes.items()}


EAGLE_NORMS = ("post_attention_layernorm",)
EAGLE3_NORMS = ("post_attention_layernorm", "hidden_norm", "input_layernorm")
EAGLE3 = {"fc.weight": (WIDTH, 3 * WIDTH), "norm.weight": (WIDTH,), "lm_head.weight": (40, WIDTH)}
MEDUSA = {
    **{f"{head}.{block}.linear.weight": (WIDTH, WIDTH) for head in (0, 1) for block in (0, 1)},
    **{f"{head}.{block}.linear.bias": (WIDTH,) for head in (0, 1) for block in (0, 1)},
    **{f"{head}.2.weight": (VOCAB, WIDTH) for head in (0, 1)},
}


def mtp(stem, parts):
    """Return the shapes of a module for multi-token prediction, among some of its target's."""
    joins, *norms = (f"{stem}.{part}.weight" for part in parts)
    layer_norms = ("post_attention_layernorm", "input_layernorm")
    own = {joins: (WIDTH, 2 * WIDTH), **dict.fromkeys(norms, (WIDTH,))}
    return {**own, **layer(stem, WIDTH, layer_norms), "model.layers.0.mlp.up_proj.weight": (2, 3)}


BIASES = {"q": HEADS, "k": KEYS, "v": KEYS}
MTP_MIMO = "model.mtp_layers.0"
MTP_DEEPSEEK = f"model.layers.{LAYERS}"
#: By case: the fields of config.json, and the shapes of the tensors with weights.
CASES = {
    "eagle": (
        {**SIZES, "architectures": ["LlamaForCausalLM"], "bias": True},
        {
            "embed_tokens.weight": (VOCAB, WIDTH),
            "fc.weight": (WIDTH, 2 * WIDTH),
            "fc.bias": (WIDTH,),
            **layer("layers.0", WIDTH, EAGLE_NORMS),
        },
    ),
    "eagle_speculators": (
        {"speculators_model_type": "eagle", "transformer_layer_config": SIZES},
        {
            "embed_tokens.weight": (VOCAB, WIDTH),
            "fusion_fc.weight": (WIDTH, 2 * WIDTH),
            **layer("transformer", WIDTH, EAGLE_NORMS),
        },
    ),
    "eagle3": (
        {**SIZES, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 40},
        {**EAGLE3, **layer("midlayer", 2 * WIDTH, EAGLE3_NORMS)},
    ),
    "eagle3_speculators": (
        {
            "speculators_model_type": "eagle3",
            "transformer_layer_config": SIZES,
            "draft_vocab_size": 40,
            "norm_before_residual": True,
            "eagle_aux_hidden_state_layer_ids": [2, 5, 7],
        },
        {
            **EAGLE3,
            **layer("layers.0", 2 * WIDTH, EAGLE3_NORMS),
            "embed_tokens.weight": (VOCAB, WIDTH),
        },
    ),
    "eagle3_normed": (
        {
            "speculators_model_type": "eagle3",
            "transformer_layer_config": SIZES,
            "draft_vocab_size": 40,
            "norm_before_residual": True,
            "norm_before_fc": True,
            "eagle_aux_hidden_state_layer_ids": [2, 5, 7],
        },
        {
            **EAGLE3,
            "input_norm.weight": (3 * WIDTH,),
            **layer("layers.0", 2 * WIDTH, EAGLE3_NORMS),
            "embed_tokens.weight": (VOCAB, WIDTH),
        },
    ),
    "medusa": ({"medusa_num_heads": 2, "medusa_num_layers": 2}, MEDUSA),
    "mtp_mimo": (
        {**SIZES, "num_hidden_layers": LAYERS},
        {
            **mtp(
                MTP_MIMO, ("input_proj", "hidden_layernorm", "token_layernorm", "final_layernorm")
            ),
            **{f"{MTP_MIMO}.self_attn.{part}_proj.bias": (n * DIM,) for part, n in BIASES.items()},
        },
    ),
    "mtp_deepseek": (
        {**SIZES, "num_hidden_layers": LAYERS},
        {
            **mtp(MTP_DEEPSEEK, ("eh_proj", "hnorm", "enorm", "shared_head.norm")),
            f"{MTP_DEEPSEEK}.embed_tokens.weight": (VOCAB, WIDTH),
            f"{MTP_DEEPSEEK}.shared_head.head.weight": (VOCAB, WIDTH),
        },
    ),
}


def target_weights():
    """Return what heads take of their target."""
    return seeded_weights(TARGET, seed=8)


def head_weights(case):
    """Return the tensors of a case, its map of tokens too."""
    tensors = dict(seeded_weights(CASES[case][1], seed=9))
    for name in ("fc.weight", "fusion_fc.weight"):  # or features without a norm would explode
        if name in tensors:
            tensors[name] = tensors[name] * np.float32(0.3)
    if case.startswith("eagle3"):
        tensors["d2t"] = (TOKENS - np.arange(40)).astype(np.int64)
        tensors["t2d"] = np.isin(np.arange(VOCAB), TOKENS)
    return tensors
